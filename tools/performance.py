"""docs/performance.md between its marks, from docs/performance.json.

    write(bench={name: {"machine": ..., "rows": [...]}})    what `python -m tools.bench --write` measured
    write(gpu={"machine": ..., "parts": ...})               what `python -m tools.gpu_check --write` measured

Modules and machines not measured again keep their figures, each with its own date. A test holds the page to the JSON.
"""

import json
from pathlib import Path

from tools.bench.rows import Row, table
from tools.gpu_check import PARTS
from tools.gpu_check import table as gpu_table

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: written by tools/performance.py -->\n", "<!-- end of figures -->\n"


def write(bench: dict[str, dict] | None = None, gpu: dict | None = None, docs: Path = DOCS) -> None:
    """Put new figures into performance.json, then the page."""
    source = docs / "performance.json"
    kept = json.loads(source.read_text()) if source.is_file() else {"bench": {}, "gpu": {}}
    kept["bench"] |= bench or {}
    if gpu:
        kept["gpu"][gpu["machine"]["gpu"]] = gpu
    source.write_text(json.dumps(kept, indent=1) + "\n")
    page = docs / "performance.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + figures(kept) + END + rest.split(END)[1])


def figures(kept: dict) -> str:
    """The generated part of the page."""
    said = ["\n## On a CPU, one thread\n"]
    for name, found in sorted(kept["bench"].items()):
        rows = [Row(**row) for row in found["rows"]]
        said.append(f"### {name}\n\n{table(rows)}\n\n{told(found['machine'])}\n")
    if not kept["bench"]:
        said.append("Not yet measured: `python -m tools.bench --write`.\n")
    said.append("## On a GPU\n")
    for name, found in sorted(kept["gpu"].items()):
        said.append(f"### {name}\n\n{gpu_table(found['parts'])}\n{told(found['machine'])}\n")
    if not kept["gpu"]:
        said.append("Not yet measured: no GPU was at hand. `python -m tools.gpu_check --write` measures "
                    f"{', '.join(PARTS)} in under ten minutes.\n")
    return "\n".join(said) + "\n"


def told(machine: dict) -> str:
    """Hardware and date under a table."""
    return "Measured " + machine["date"] + ": " + ", ".join(
        f"{key} {value}" for key, value in machine.items() if key != "date") + "."
