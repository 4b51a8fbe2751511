#!/usr/bin/env bash
# Train on several GPUs of this machine; without GPUs, in several processes on its cores.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 4 "$@" -- "NUM_GPUS SCRIPT CFG MODEL_DIR [ARGS ...]"
gpus=$1 script=$2 cfg=$3 dir=$4
shift 4
exec "$PYTHON" scripts/launch.py --nproc_per_node "$gpus" "$script" --cfg "$cfg" --model-dir "$dir" "$@"
