# On processors: docker build -t tf_efsgd . && docker run --rm -v "$PWD:/work" \
#   -v tf_efsgd-state:/state tf_efsgd train --flagfile=demo.flags
# See docs/install.md. Dockerfile.gpu is the same with the libraries of NVIDIA.
FROM python:3.11-slim-bookworm

# Where runs are remembered beside their folders. It must outlive the container: without it a run
# cannot be resumed, and runs on the same records do not know of each other.
ENV XDG_STATE_HOME=/state \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home --uid 1000 user && mkdir /work /state && chown user:user /work /state

COPY setup.py pyproject.toml README.md LICENSE /source/
COPY configs /source/configs
COPY tf_efsgd /source/tf_efsgd
RUN pip install --no-cache-dir /source && pip check

USER 1000
WORKDIR /work
VOLUME ["/state"]
ENTRYPOINT ["tf-efsgd"]
CMD ["--help"]
