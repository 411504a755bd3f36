"""tools/launch/deepspeed.sh with real processes: a hostfile of two machines that are both this one, without ssh."""


def test_a_hostfile_of_two_nodes_trains_as_one_process_does(runs, port, tmp_path):
    run = runs.fresh("deepspeed")
    (tmp_path / "hostfile").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    shared = {"HOSTFILE": str(tmp_path / "hostfile"), "HEAD": "127.0.0.1", "PORT": port, "DS_ACCELERATOR": "cpu"}
    runs.end(*(runs.start(runs.templates / "deepspeed.sh", run, NODE=node, **shared) for node in "01"))
    runs.same(run)
