#!/usr/bin/env bash
# Train on GPUS GPUs of a SLURM cluster, one task for each. Environment: GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS, PY_ARGS.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 5 "$@" -- "PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS=8]"
gpus=${6:-8}
per_node=$((gpus < ${GPUS_PER_NODE:-8} ? gpus : ${GPUS_PER_NODE:-8}))
# shellcheck disable=SC2086 # the two variables hold several arguments
exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "$PYTHON" -u "$3" --cfg "$4" --model-dir "$5" --slurm --dist ${PY_ARGS:-}
