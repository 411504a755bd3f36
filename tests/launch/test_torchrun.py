"""tools/launch/one_node.sh and nodes.sh with real processes."""

import os
import shutil
import subprocess

import pytest

from unimm.system import open_run


def test_one_node_of_two_ranks_trains_every_stage_from_nothing_as_one_process_does(runs):
    run = runs.folder / "one-node"
    run.mkdir()
    shutil.copy(runs.folder / "one" / "recipe.json", run)
    said = runs.end(runs.start(runs.templates / "one_node.sh", run))
    assert "= 2 ranks x" in said
    alone, two = (runs.curve(runs.folder / name, "tokenizer") for name in ("one", "one-node"))
    assert two == pytest.approx(alone, rel=1e-3) and len(two) > 1
    assert (run / "codes" / "chats" / "manifest.json").is_file() and len(runs.curve(run)) == 5
    assert open_run(run).checkpoint.name == "step-00000005"


@pytest.fixture
def nodes(port):
    """How to start each of two machines' commands, and the settings of each: network namespaces where they can be
    made, one machine twice elsewhere."""
    names = [f"unimm{os.getpid()}a", f"unimm{os.getpid()}b"]
    why = "" if os.geteuid() == 0 and shutil.which("ip") else "they need root and the program ip"
    why = why or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True).stderr.strip()
    if why:
        print(f"two nodes on one network, not in namespaces of their own: {why}")
        yield [([], {"HEAD": "127.0.0.1", "PORT": port})] * 2
        return
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ("10.77.0.1", "10.77.0.2")):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        shared = {"HEAD": "10.77.0.1", "GLOO_SOCKET_IFNAME": "cable"}
        yield [(["ip", "netns", "exec", name], {"LOCAL": address, **shared})
               for name, address in zip(names, ("10.77.0.1", "10.77.0.2"))]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def test_two_nodes_train_as_one_process_does(runs, nodes):
    run = runs.fresh("nodes")
    runs.end(*(runs.start(*where, runs.templates / "nodes.sh", run, NODES="2", RANKS="1", **settings)
               for where, settings in nodes))
    runs.same(run)
