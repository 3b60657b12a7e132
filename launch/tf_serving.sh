#!/usr/bin/env bash
# Serves the exported generator of a run over REST: launch/tf_serving.sh RUN_DIR [PORT]
#
# Takes tensorflow_model_server when it is on the PATH, else docker. From the environment:
#   TF_SERVING_IMAGE  the docker image (default tensorflow/serving:2.15.1)
#   TF_SERVING_BIND   the address that docker listens on (default 127.0.0.1: this machine only)
set -euo pipefail

die() {
  echo "tf_serving.sh: $*" >&2
  exit 2
}

(($# == 1 || $# == 2)) || die "usage: launch/tf_serving.sh RUN_DIR [PORT]"
run_dir=$1
port=${2:-8501}
[[ ${port} =~ ^[0-9]+$ ]] || die "PORT must be a number. Received: ${port}"
[[ -f ${run_dir}/export/1/saved_model.pb ]] ||
  die "no exported generator in ${run_dir}/export/1. Train with --export, or give another run folder."
export_dir=$(cd "${run_dir}/export" && pwd)

cat <<EOF
Serving ${export_dir} on port ${port}. Once it is up, ask for one image of each of three labels:
  curl -X POST http://localhost:${port}/v1/models/generator:predict \\
    -d '{"signature_name":"serving_default","inputs":{"labels":[0,1,2]}}'
EOF

if command -v tensorflow_model_server >/dev/null; then
  exec tensorflow_model_server --port=0 --rest_api_port="${port}" \
    --model_name=generator --model_base_path="${export_dir}"
elif command -v docker >/dev/null; then
  exec docker run --rm --publish "${TF_SERVING_BIND:-127.0.0.1}:${port}:8501" \
    --mount "type=bind,source=${export_dir},target=/models/generator,readonly" \
    --env MODEL_NAME=generator "${TF_SERVING_IMAGE:-tensorflow/serving:2.15.1}"
else
  die "neither tensorflow_model_server nor docker is on the PATH. Install one of them."
fi
