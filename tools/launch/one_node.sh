#!/usr/bin/env bash
# One machine, all its GPUs:            tools/launch/one_node.sh RECIPE [--out RUN] [overrides]
# Starting it again continues the run.
set -euo pipefail

# "gpu" is as many processes as there are GPUs; "cpu" or a number elsewhere.
RANKS=${RANKS:-gpu}
# A rank that dies takes the others with it; torchrun then starts all of them again from the newest checkpoint. Not
# without end: a broken recipe would burn the allocation.
RESTARTS=${RESTARTS:-3}
# Each process would otherwise start a thread per core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# --standalone finds a free port itself.
exec torchrun --standalone --nproc-per-node "$RANKS" --max-restarts "$RESTARTS" -m unimm train "$@"
