#!/usr/bin/env bash
# init.sh on a node of a SLURM cluster. Environment: GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 2 "$@" -- "PARTITION JOB_NAME [GPUS=1]"
# shellcheck disable=SC2086 # the variable holds several arguments
exec srun -p "$1" --job-name="$2" --gres="gpu:${GPUS_PER_NODE:-1}" --ntasks="${3:-1}" --ntasks-per-node="${GPUS_PER_NODE:-1}" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} bash scripts/init.sh
