#!/usr/bin/env bash
# Train in one process on one device. Where GPUS of the config names several, it accumulates as many micro-batches.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 3 "$@" -- "SCRIPT CFG MODEL_DIR [ARGS ...]"
script=$1 cfg=$2 dir=$3
shift 3
exec "$PYTHON" -u "$script" --cfg "$cfg" --model-dir "$dir" "$@"
