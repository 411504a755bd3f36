"""The benchmarks that start whole runs, at toy size."""

import pytest

from tools.bench import __main__ as bench


@pytest.mark.parametrize("name", ["step", "zero"])
def test_the_benches_of_whole_runs_go_through_at_toy_size(name):
    found = bench.run(name, toy=True)
    assert found and all(row.ours > 0 and row.theirs > 0 and row.peer and row.wanted for row in found)
