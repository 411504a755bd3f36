import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for train_toys, which is a script for subprocesses too


class Toys:
    """Starts train_toys.py as a process of its own."""

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}

    def command(self, mode: str, folder: Path, ranks: int = 1) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        return [sys.executable, *launcher, str(HERE / "train_toys.py"), mode, str(folder)]

    def runs(self, folder: Path, runs: list[dict], ranks: int = 1) -> dict[str, list[float]]:
        """What engine_runs.py finds, by name."""
        (folder / "runs.json").write_text(json.dumps(runs))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launcher, str(HERE / "engine_runs.py"), str(folder)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return json.loads((folder / "found.json").read_text())

    def run(self, mode: str, folder: Path, ranks: int = 1) -> str:
        command = self.command(mode, folder, ranks)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def start(self, mode: str, folder: Path, ranks: int = 1) -> subprocess.Popen:
        command = self.command(mode, folder, ranks)
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture(scope="session")
def plain_curves(tmp_path_factory) -> dict[str, list[float]]:
    """The loss at each step of every curve, by the plain engine."""
    from train_toys import CURVES, curve, train

    folder = tmp_path_factory.mktemp("plain")
    for name, changes in CURVES.items():
        train(folder / name, **changes)
    return {name: curve(folder / name) for name in CURVES}
