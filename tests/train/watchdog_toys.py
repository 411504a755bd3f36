"""A rank that stands still beside one that waits for it; the tests start two of these.

    python watchdog_toys.py HOW FOLDER STORE RANK
"""

import ctypes
import os
import sys
import threading
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def stall_in_data() -> None:
    threading.Event().wait()


def hold_the_lock() -> None:
    """Wait for a byte that never comes, in C, without letting go of Python's lock."""
    reader, _ = os.pipe()
    ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)


def main(how: str, folder: Path, store: Path, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from unimm.train.watchdog import Watchdog

    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    dog = Watchdog(folder, rank, 2, 0.8).start()
    for step in range(1, 6):
        dog.beat(step, "data")
        if (step, rank) == (4, 1):
            stall_in_data() if how == "data" else hold_the_lock()
        dog.beat(step, "collective")
        dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
