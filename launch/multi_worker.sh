#!/usr/bin/env bash
# Trains with several worker processes on this machine: launch/multi_worker.sh N FLAG ...
#
#   launch/multi_worker.sh 2 --flagfile=demo.flags --run_dir=runs/two
#
# N workers (the first is the chief, which alone writes the run folder) get free ports and the same
# flags. It is for trying --strategy=multi_worker out: one process on all GPUs of a machine
# (launch/multi_gpu.sh) is faster. Ctrl-C stops all, with a checkpoint; continue with --resume.
# The exit code is the chief's, or that of the first other worker that failed. From the environment:
#   PYTHON       the interpreter (default: the .venv that make has made, else python)
#   WORKER_LOGS  a folder for what each other worker says (default: shown here)
set -euo pipefail

die() {
  echo "multi_worker.sh: $*" >&2
  exit 2
}

[[ ${1:-} =~ ^[1-9][0-9]?$ ]] ||
  die "usage: launch/multi_worker.sh N FLAG ..., N workers, 1 to 99. Received: ${1:-none}"
count=$1
shift
for flag in "$@"; do
  [[ ${flag} != --strategy* ]] || die "the strategy is multi_worker. Received: ${flag}"
done

venv_python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[[ -x ${venv_python} ]] || venv_python=python
python=${PYTHON:-${venv_python}}

cluster=$("${python}" - "${count}" <<'PYTHON_SCRIPT'
import json
import socket
import sys

# All are open at once, so that no port comes twice.
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for listener in sockets:
    listener.bind(('127.0.0.1', 0))
print(json.dumps({'worker': [f'127.0.0.1:{s.getsockname()[1]}' for s in sockets]}))
PYTHON_SCRIPT
) || die "${python} does not run. Name another interpreter with PYTHON=..."

pids=()
stop() {
  # The workers agree on when to stop; a second signal stops them at once.
  for pid in "${pids[@]}"; do
    kill -s "$1" "${pid}" 2>/dev/null || true
  done
}
# Of a terminal's Ctrl-C the workers hear from here alone: a shell's background has no SIGINT.
trap 'stop TERM' INT TERM
trap 'stop KILL' EXIT

for ((index = 0; index < count; index++)); do
  out=/dev/stdout
  if ((index > 0)) && [[ -n ${WORKER_LOGS:-} ]]; then
    mkdir -p "${WORKER_LOGS}"
    out=${WORKER_LOGS}/worker_${index}.log
  fi
  TF_CONFIG="{\"cluster\": ${cluster}, \"task\": {\"type\": \"worker\", \"index\": ${index}}}" \
    "${python}" -m tf_efsgd.launch --strategy=multi_worker "$@" >>"${out}" 2>&1 &
  pids+=("$!")
done

# When one worker is lost, the others end by themselves. One that still runs after this many seconds
# is stopped.
patience=120
codes=()
failed_at=
while :; do
  running=0
  for ((index = 0; index < count; index++)); do
    [[ -z ${codes[index]:-} ]] || continue
    if kill -0 "${pids[index]}" 2>/dev/null; then
      running=1
    else
      code=0
      wait "${pids[index]}" || code=$?
      codes[index]=${code}
      ((code == 0)) || failed_at=${failed_at:-${SECONDS}}
    fi
  done
  ((running)) || break
  if [[ -n ${failed_at} ]] && ((SECONDS - failed_at > patience)); then
    echo "multi_worker.sh: a worker ended and others still run; they are stopped." >&2
    stop KILL
    failed_at=
  fi
  sleep 0.3 || true
done

trap - EXIT
for code in "${codes[@]}"; do
  ((code == 0)) || exit "${code}"
done
