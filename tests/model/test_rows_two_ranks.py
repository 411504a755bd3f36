"""Defect 17: rows added to a published table are neither uninitialised nor left whole under ZeRO-3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from model.released import theirs
from model.rows_on_ranks import stepped

HERE = Path(__file__).parent


def test_new_rows_and_parts_of_a_janus_are_equal_on_two_ranks_sharded_and_learn_as_in_one_process(tmp_path):
    for kind in ("llama", "janus"):
        theirs(kind).save_pretrained(tmp_path / kind)
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(HERE / "rows_on_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}, timeout=240,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    first, second = json.loads((tmp_path / "found.json").read_text())
    for kind in ("llama", "janus"):
        assert first[f"{kind} start"] == second[f"{kind} start"]
        assert first[f"{kind} sharded"] == 1.0 and first[f"{kind} largest share"] < 0.75
        start, before, after = torch.load(tmp_path / f"{kind}.pt")
        alone = stepped(kind, tmp_path / kind, 1, 0, "plain", 0)[2]
        for name, t in start.items():
            assert torch.equal(before[name], t) and t.isfinite().all(), name
            if name.endswith("k_proj.bias"):
                continue  # moves no softmax: its gradient is rounding, which Adam's first step makes as large as any
            torch.testing.assert_close(after[name], alone[name], atol=1e-4, rtol=0)
            assert (after[name] - t).abs().max() > 0.005, name
