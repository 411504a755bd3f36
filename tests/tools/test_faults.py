"""The fault matrix: a sample of each row, that it notices what it is there for, and its page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.faults.__main__ import BEGIN, DOCS, END, ROWS, figures

ROOT = Path(__file__).parents[2]
DEFECTS = {
    "samples": "from unimm.stream.batches import Batches as Class\nClass.restore = lambda self, state: None",
    "random state": "from unimm.train import loop\nloop.seed_slot = lambda seed, step, slot: None",
    "model.safetensors": """
from unimm.train.pieces import Masters as Class
real = Class.restore
def forgetful(self, read, updates):
    real(self, read, updates)
    for state in self.optimizer.state.values():
        state["exp_avg"].zero_()
Class.restore = forgetful
""",
}


def started(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=1200)


def test_a_sample_of_every_row_holds():
    done = started("-m", "tools.faults", "--sample")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.count("| yes |") == len(ROWS)


def test_what_a_run_forgets_when_it_continues_is_found_out(tmp_path):
    """Three defects, each put into the library; where a run is killed and continued, each shows where it should."""
    program = f"""
import os
import torch
from pathlib import Path
from tools.faults.rank import Kind
from tools.faults.runs import Lab, differences, pool, preload

torch.set_num_threads(1)
preload()
lab, kind = Lab(Path({str(tmp_path)!r})), Kind(world=1, engine="plain")
whole = lab.undisturbed(kind)
for name, defect in {DEFECTS!r}.items():
    def continued():
        folder = lab.folder / name
        lab.started(kind, folder)
        exec(defect, {{}})
        lab.train(folder, kind)
        return differences(whole, folder)
    print(name, name in pool([continued], lab.folder / "found", 1)[0])
"""
    done = started("-c", program)
    assert done.stdout.splitlines()[-3:] == [f"{name} True" for name in DEFECTS], done.stdout + done.stderr[-3000:]


@pytest.mark.skipif(not (DOCS / "faults.json").is_file(), reason="the matrix was not yet run")
def test_the_page_says_what_the_matrix_found_and_all_of_it_holds():
    kept = json.loads((DOCS / "faults.json").read_text())
    assert figures(kept) == (DOCS / "faults.md").read_text().split(BEGIN)[1].split(END)[0]
    assert kept["rows"].keys() == ROWS.keys() and all(row["holds"] for row in kept["rows"].values())
