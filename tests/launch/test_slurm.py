"""tools/launch/slurm.sbatch on a cluster that is this machine (bin/), and what srun's variables mean."""

import os
from pathlib import Path

import pytest

from unimm.train.ranks import adopt_slurm, first_host

BIN = Path(__file__).parent / "bin"
TASK = {"SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_NODELIST": "gpu[06-08]"}


def sbatch(runs, cluster, *arguments, **environment):
    path = f"{BIN}{os.pathsep}{runs.environment['PATH']}"
    return runs.start("sbatch", "--nodes=2", "--ntasks-per-node=1", runs.templates / "slurm.sbatch", *arguments,
                      PATH=path, CLUSTER=str(cluster), **environment)


def test_two_nodes_of_slurm_train_as_one_process_does(runs, tmp_path):
    run = runs.fresh("slurm")
    runs.end(sbatch(runs, tmp_path, run))
    runs.same(run)
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("codes, runs_of_the_job, ends", [
    ("0", 1, 0),  # done
    ("2", 1, 2),  # bad input: again would be the same
    ("75 0", 2, 0),  # saved before the time limit
    ("137 75 1 0", 4, 0),  # killed, saved, a defect
    ("75 75 75 75", 4, 75),  # as often as MAX_RESTARTS says
])
def test_the_job_is_started_again_where_that_helps(runs, tmp_path, codes, runs_of_the_job, ends):
    program = tmp_path / "python"
    program.write_text("""#!/usr/bin/env bash
        [ "$SLURM_PROCID" = 0 ] || exit 0
        read -r code rest < "$CLUSTER/codes"
        echo ran
        echo "$rest" > "$CLUSTER/codes"
        exit "$code"
    """)
    program.chmod(0o755)
    (tmp_path / "codes").write_text(codes + "\n")
    job = sbatch(runs, tmp_path, "recipe", PYTHON=str(program), MAX_RESTARTS="3")
    said = job.communicate(timeout=60)[0]
    assert job.returncode == ends and said.count("ran") == runs_of_the_job, said


def test_a_task_of_srun_finds_its_place_and_the_first_node():
    environment = dict(TASK)
    adopt_slurm(environment)
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07"}
    other = TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    adopt_slurm(other)
    assert other["MASTER_PORT"] == environment["MASTER_PORT"] and 15000 <= int(other["MASTER_PORT"]) < 30000
    next_job = TASK | {"SLURM_JOB_ID": "4243"}
    adopt_slurm(next_job)
    assert next_job["MASTER_PORT"] != environment["MASTER_PORT"]


@pytest.mark.parametrize("missing, added", [
    ("SLURM_STEP_ID", {}),  # a batch script, or a shell of salloc: one process, whatever the job has
    ("", {"SLURM_NTASKS": "1"}),
    ("", {"RANK": "3"}),  # torchrun, started by srun
])
def test_what_is_no_task_among_others_is_left_alone(missing, added):
    environment = {name: value for name, value in TASK.items() if name != missing} | added
    before = dict(environment)
    adopt_slurm(environment)
    assert environment == before


def test_what_is_set_by_hand_stays():
    environment = TASK | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}
    adopt_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.7", "1234")


@pytest.mark.parametrize("nodes, first", [
    ("node1", "node1"), ("node[001-004]", "node001"), ("gpu[07-12,20],big1", "gpu07"), ("a,b", "a"),
    ("rack[2,4]-n[08-09],c", "rack2-n08"), ("gpu-a[3,5-6]-ib", "gpu-a3-ib"),
])
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first
