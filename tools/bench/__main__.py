"""Every row of tools/bench as one table, each a ratio against a named peer.

    python -m tools.bench [NAME ...] [--toy] [--json FILE] [--write]

Each NAME (a file of this folder) runs as a process of its own, so that one's memory and threads are not another's;
within it the two sides run interleaved. `--write` puts the rows into docs/performance.md. Exits 1 where a row misses
what is wanted or a module fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tools.bench.rows import Row, machine, table
from tools.performance import write

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("rows", "__main__"))
LIMIT = 1200
"""Seconds after which a module is given up."""


def run(name: str, toy: bool = False) -> list[Row]:
    """The rows of one module. Raises RuntimeError with the end of what it said where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"tools.bench.{name}", "--json", str(target), *(["--toy"] if toy else [])]
        # One thread: two would only wait for one another, and CPU time would count the waiting.
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                              text=True, timeout=LIMIT)
        if done.returncode or not target.is_file():
            raise RuntimeError(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        return [Row(**row) for row in json.loads(target.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--toy", action="store_true", help="the same path in seconds; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there too")
    parser.add_argument("--write", action="store_true", help="put them into docs/performance.json and .md")
    given = parser.parse_args()
    if given.toy and given.write:
        parser.error("--toy measures nothing that could be written")
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no module {', '.join(sorted(unknown))} in tools/bench; it has: {', '.join(NAMES)}")
    found: dict[str, list[Row]] = {}
    failed = []
    for name in given.names or NAMES:
        try:
            found[name] = run(name, given.toy)
        except (RuntimeError, subprocess.TimeoutExpired) as why:
            failed.append(name)
            print(why, file=sys.stderr)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table([row for rows in found.values() for row in rows]))
    kept = {name: {"machine": about, "rows": [asdict(row) for row in rows]} for name, rows in found.items()}
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1) + "\n")
    if given.write:
        write(bench=kept)
    sys.exit(bool(failed) or not all(row.holds for rows in found.values() for row in rows))


if __name__ == "__main__":
    main()
