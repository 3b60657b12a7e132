#!/usr/bin/env bash
# Trains on all GPUs of this machine: launch/multi_gpu.sh --flagfile=mnist.flags [FLAG ...]
set -euo pipefail

gpus=0
if command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
fi
if ((gpus < 2)); then
  echo "multi_gpu.sh: nvidia-smi sees ${gpus} GPU(s), two or more are needed. Check the driver with" \
    "nvidia-smi, or train on one device: python -m tf_efsgd.launch --strategy=one_device ..." >&2
  exit 2
fi

# The .venv that make has made, when there is one; PYTHON=... says another.
venv_python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[[ -x ${venv_python} ]] || venv_python=python
exec "${PYTHON:-${venv_python}}" -m tf_efsgd.launch --strategy=mirrored "$@"
