"""The fault matrix: everything that may happen to a run, done to real processes, and whether the run survived it.

    python -m tools.faults [ROW ...] [--sample] [--write] [--width N]

One table: claim, wanted, found, holds. `--sample` does a few of each row in under three minutes of two cores; `--write`
puts the rows into docs/faults.json and docs/faults.md. Exits 1 where a row does not hold.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a pool of threads does not survive a fork

import torch  # noqa: E402

from tools.bench.rows import machine  # noqa: E402
from tools.faults.damage import damages, disks  # noqa: E402
from tools.faults.endings import signals  # noqa: E402
from tools.faults.guarded import numbers  # noqa: E402
from tools.faults.kills import kills_while_saving, random_kills  # noqa: E402
from tools.faults.moves import MOVES, moves  # noqa: E402
from tools.faults.runs import Fault, Lab, Row, preload  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- figures: written by tools/faults -->\n", "<!-- end of figures -->\n"

ROWS: dict[str, Callable[[Lab, bool, int], Row]] = {
    "kills": lambda lab, sample, width: random_kills(lab, 8 if sample else 100, width),
    "points": lambda lab, sample, width: kills_while_saving(lab, 12 if sample else 1, width),
    "moves": lambda lab, sample, width: moves(lab, 3 if sample else len(MOVES), width),
    "damages": lambda lab, sample, width: damages(lab, 20 if sample else 200, width, 1 if sample else 10),
    "disks": lambda lab, sample, width: disks(lab, width, 3 if sample else None),
    "signals": lambda lab, sample, width: signals(lab, width, 3 if sample else None),
    "numbers": lambda lab, sample, width: numbers(lab, width, 4 if sample else None),
}


def table(found: dict[str, Row]) -> str:
    lines = ["| claim | wanted | found | holds | seconds |", "|---|---|---|---|---|"]
    lines += [f"| {row.claim} | {row.wanted} | {' '.join(row.found.split()).replace('|', '/')} | "
              f"{'yes' if row.holds else 'NO'} | {row.seconds:.0f} |" for row in found.values()]
    return "\n".join(lines)


def figures(kept: dict) -> str:
    """The generated part of docs/faults.md."""
    rows = {name: Row(**kept["rows"][name]) for name in ROWS if name in kept["rows"]}
    about = ", ".join(f"{key} {value}" for key, value in kept["machine"].items() if key != "date")
    return f"\n{table(rows)}\n\nMeasured {kept['machine']['date']}: {about}.\n\n"


def write(found: dict[str, Row], docs: Path = DOCS) -> None:
    """Put new rows into faults.json, then the page; rows not done again stay."""
    source, page = docs / "faults.json", docs / "faults.md"
    kept = json.loads(source.read_text())["rows"] if source.is_file() else {}
    now = {"machine": machine(), "rows": kept | {name: asdict(row) for name, row in found.items()}}
    source.write_text(json.dumps(now, indent=1) + "\n")
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + figures(now) + END + rest.split(END)[1])


def measure(names: list[str], sample: bool, width: int, folder: Path, keep: bool = False) -> dict[str, Row]:
    preload()
    lab = Lab(folder)
    found = {}
    for name in names:
        began = time.monotonic()
        try:
            row = ROWS[name](lab, sample, width)
        except Fault as why:
            row = Row(name, "to be done at all", str(why), False)
        # No machine's paths in the table.
        found[name] = replace(row, seconds=round(time.monotonic() - began, 1),
                              found=row.found.replace(str(folder), "RUNS"))
        print(f"{name}: {'holds' if row.holds else 'DOES NOT HOLD'}, {found[name].seconds:.0f} s: {found[name].found}",
              flush=True)
        if keep:
            write({name: found[name]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.faults", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all where none is named")
    parser.add_argument("--sample", action="store_true", help="a few of each")
    parser.add_argument("--write", action="store_true", help="put the rows into docs/faults.json and .md")
    parser.add_argument("--width", type=int, default=os.cpu_count() or 1, help="runs at a time (the number of cores)")
    parser.add_argument("--folder", type=Path, help="where the runs go (a temporary folder, removed if all hold)")
    given = parser.parse_args()
    if given.sample and given.write:
        parser.error("--sample is not the whole matrix: nothing to write")
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there is {', '.join(ROWS)}")
    torch.set_num_threads(1)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    found = measure(given.rows or list(ROWS), given.sample, given.width, folder, given.write)
    print(table(found))
    held = all(row.holds for row in found.values())
    if held and not given.folder:
        shutil.rmtree(folder)
    elif not held:
        print(f"what is left of the runs: {folder}", file=sys.stderr)
    sys.exit(not held)


if __name__ == "__main__":
    main()
