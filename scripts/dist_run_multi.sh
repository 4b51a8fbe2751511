#!/usr/bin/env bash
# Train on several machines: the same command on each, but for NODE_RANK. MODEL_DIR must be a folder that all of them share.
set -euo pipefail
. "$(dirname "$0")/python.sh"
usage 7 "$@" -- "NUM_NODES NODE_RANK MASTER_ADDR GPUS_PER_NODE SCRIPT CFG MODEL_DIR [ARGS ...]"
nodes=$1 node=$2 host=$3 gpus=$4 script=$5 cfg=$6 dir=$7
shift 7
exec "$PYTHON" scripts/launch.py --nnodes "$nodes" --node_rank "$node" --master_addr "$host" \
  --nproc_per_node "$gpus" "$script" --cfg "$cfg" --model-dir "$dir" "$@"
