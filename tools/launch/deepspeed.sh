#!/usr/bin/env bash
# Several machines that one of them reaches by ssh:     tools/launch/deepspeed.sh RECIPE --out /shared/runs/NAME
# Started once, on the first machine of the HOSTFILE. Without ssh: NODE=0 here, NODE=1 on the second one, and HEAD the
# address of the first.
set -euo pipefail

HOSTFILE=${HOSTFILE:-$(dirname "$0")/hostfile}
PORT=${PORT:-29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

if [ -n "${NODE:-}" ]; then
    : "${HEAD:?the address of the first machine, such as HEAD=10.0.0.1}"
    how=(--no_ssh --node_rank "$NODE" --master_addr "$HEAD")
else
    # Over ssh only variables that this file names arrive, beside NCCL_* and PYTHON*.
    printf 'OMP_NUM_THREADS=%s\n' "$OMP_NUM_THREADS" > .deepspeed_env
    how=()
fi

# --no_local_rank: unimm reads LOCAL_RANK. The deepspeed launcher does not restart what dies: start it again.
exec deepspeed --hostfile "$HOSTFILE" --master_port "$PORT" "${how[@]}" --no_local_rank --module unimm train "$@"
