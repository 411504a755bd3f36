"""tools/launch/one_node.sh and nodes.sh with real processes."""

import os
import shutil
import subprocess

import pytest


def test_one_node_of_two_ranks_trains_as_one_process_does(runs):
    run = runs.fresh("one-node")
    said = runs.end(runs.start(runs.templates / "one_node.sh", run))
    assert "2 ranks" in said or "2 processes" in said
    runs.same(run)


def test_two_nodes_on_one_machine_train_as_one_process_does(runs, port):
    run = runs.fresh("nodes")
    two = {"HEAD": "127.0.0.1", "PORT": port, "NODES": "2", "RANKS": "1"}
    runs.end(*(runs.start(runs.templates / "nodes.sh", run, **two) for _ in range(2)))
    runs.same(run)


@pytest.fixture
def namespaces():
    """Two network namespaces joined by a cable: their names, addresses and the name of the cable's end in both."""
    names = [f"unimm{os.getpid()}a", f"unimm{os.getpid()}b"]
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip")
    if said := subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True).stderr:
        pytest.skip(f"this system makes no network namespaces: {said.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ("10.77.0.1", "10.77.0.2")):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield dict(zip(names, ("10.77.0.1", "10.77.0.2")))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def test_two_nodes_with_networks_of_their_own_train_as_one_process_does(runs, namespaces):
    run = runs.fresh("namespaces")
    shared = {"HEAD": "10.77.0.1", "NODES": "2", "RANKS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    runs.end(*(runs.start("ip", "netns", "exec", name, runs.templates / "nodes.sh", run, LOCAL=address, **shared)
               for name, address in namespaces.items()))
    runs.same(run)
