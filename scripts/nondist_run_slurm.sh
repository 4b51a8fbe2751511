#!/usr/bin/env bash
# Train in one process on a SLURM cluster. Environment: CPUS_PER_TASK, SRUN_ARGS, PY_ARGS.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 5 "$@" -- "PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS=8]"
# shellcheck disable=SC2086 # the two variables hold several arguments
exec srun -p "$1" --job-name="$2" --gres="gpu:${6:-8}" --ntasks=1 --ntasks-per-node=1 \
  --cpus-per-task="${CPUS_PER_TASK:-40}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "$PYTHON" -u "$3" --cfg "$4" --model-dir "$5" ${PY_ARGS:-}
