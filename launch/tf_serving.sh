#!/usr/bin/env bash
# Serves the exported generator of a run: launch/tf_serving.sh RUN_DIR [PORT [GRPC_PORT]]
#
# REST on PORT (8501), gRPC on GRPC_PORT (8500). Takes tensorflow_model_server when it is on the
# PATH, else docker. From the environment:
#   TF_SERVING_IMAGE  the docker image (default tensorflow/serving:VERSION, where VERSION is that of
#                     the TensorFlow that made the latest export, or 2.15.1 if it does not say so)
#   TF_SERVING_BIND   the address that docker listens on (default 127.0.0.1: this machine only)
set -euo pipefail

die() {
  echo "tf_serving.sh: $*" >&2
  exit 2
}

is_port() {
  [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 <= 65535))
}

(($# >= 1 && $# <= 3)) || die "usage: launch/tf_serving.sh RUN_DIR [PORT [GRPC_PORT]]"
run_dir=$1
port=${2:-8501}
grpc_port=${3:-8500}
is_port "${port}" || die "PORT must be a number from 1 to 65535. Received: ${port}"
is_port "${grpc_port}" || die "GRPC_PORT must be a number from 1 to 65535. Received: ${grpc_port}"
((port != grpc_port)) || die "PORT and GRPC_PORT must be two. Received: ${port} for both"
latest=0
for model in "${run_dir}"/export/[0-9]*/saved_model.pb; do
  version=$(basename -- "$(dirname -- "${model}")")
  [[ -f ${model} && ${version} =~ ^[1-9][0-9]{0,17}$ ]] && ((version > latest)) && latest=${version}
done
((latest > 0)) ||
  die "no exported generator in ${run_dir}/export. Train with --export, or give another run folder."
# CDPATH would send a relative path elsewhere, and without -- one that begins with - is an option.
export_dir=$(CDPATH='' cd -- "${run_dir}/export" && pwd && echo x)
export_dir=${export_dir%$'\nx'}
[[ ${export_dir} != *[$'\n\r']* ]] || die "a path with a line break cannot be served. Rename it."

# The version of TensorFlow that the statement of the latest export names, e.g. 2.15.1. In a name of
# a class the quotation marks would be escaped, so that it is not taken for the entry.
statement=${export_dir}/${latest}/assets.extra/privacy_statement.json
tensorflow=''
if [[ -r ${statement} ]]; then
  tensorflow=$(tr '\n' ' ' <"${statement}" |
    sed -n 's/.*"software": *{[^}]*"tensorflow": *"\([0-9]*\.[0-9]*\.[0-9]*\)".*/\1/p')
fi
[[ ${tensorflow} =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || tensorflow=2.15.1
image=${TF_SERVING_IMAGE:-tensorflow/serving:${tensorflow}}

cat <<EOF
Serving ${export_dir} on port ${port} (REST) and ${grpc_port} (gRPC). Once it is up, ask for one image
of each of three labels:
  curl -X POST http://localhost:${port}/v1/models/generator:predict \\
    -d '{"signature_name":"serving_default","inputs":{"labels":[0,1,2]}}'
EOF

if command -v tensorflow_model_server >/dev/null; then
  exec tensorflow_model_server --port="${grpc_port}" --rest_api_port="${port}" \
    --model_name=generator --model_base_path="${export_dir}"
elif command -v docker >/dev/null; then
  # docker reads --mount as a line of CSV: quoted, a comma or a colon in the path stays in it.
  bind=${TF_SERVING_BIND:-127.0.0.1}
  echo "Docker image: ${image}. If there is no such image, set TF_SERVING_IMAGE to another."
  exec docker run --rm --publish "${bind}:${port}:8501" --publish "${bind}:${grpc_port}:8500" \
    --mount "type=bind,\"source=${export_dir//\"/\"\"}\",target=/models/generator,readonly" \
    --env MODEL_NAME=generator "${image}"
else
  die "neither tensorflow_model_server nor docker is on the PATH. Install one of them."
fi
