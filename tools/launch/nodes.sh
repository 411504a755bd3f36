#!/usr/bin/env bash
# Several machines without a scheduler: start the same line on each of them, in any order, within ten minutes:
#     HEAD=10.0.0.1 NODES=2 tools/launch/nodes.sh RECIPE --out /shared/runs/NAME [overrides]
# HEAD is the address of one of the machines, as all of them reach it. --out is on storage that all of them see.
# When a machine is lost, the others wait for it: start the same line there, or on a machine in its place.
set -euo pipefail

: "${HEAD:?the address of one of the machines, such as HEAD=10.0.0.1}"
: "${NODES:?how many machines, such as NODES=2}"
PORT=${PORT:-29400}
# Runs that share a HEAD and PORT by mistake must not mix.
RUN=${RUN:-unimm}
RANKS=${RANKS:-gpu}
RESTARTS=${RESTARTS:-3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# Where a machine's name does not lead the others to it, LOCAL says its address; HEAD's own hosts the rendezvous.
here=()
if [ -n "${LOCAL:-}" ]; then
    here=(--local-addr "$LOCAL" --rdzv-conf "is_host=$([ "$LOCAL" = "$HEAD" ] && echo true || echo false)")
fi

exec torchrun --nnodes "$NODES" --nproc-per-node "$RANKS" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" \
    --rdzv-id "$RUN" "${here[@]}" --max-restarts "$RESTARTS" -m unimm train "$@"
