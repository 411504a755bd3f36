"""The README's picture and scores, from a trained and scored demo run.

    python tools/readme.py runs/demo

writes docs/demo.png (the first unseen prompts of each kind, not chosen by hand), docs/demo.json (the scores) and the
table between the README's score marks. A test holds the table against docs/demo.json.
"""

import json
import sys
from pathlib import Path

from data import shapes
from unimm.generate.use import draw
from unimm.pictures import grid, write_png
from unimm.sample import Text
from unimm.system import open_run

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- scores: written by tools/readme.py -->\n", "<!-- end of scores -->\n"
KINDS = ("single", "count", "relation", "two")
KEPT = ("t2i", "vqa", "edit", "tokenizer", "leakage", "counts", "seconds", "sampling", "machine", "date")


def table(report: dict) -> str:
    """The scores as a Markdown table."""
    t2i, counts, by_type = report["t2i"], report["counts"], report["vqa"]["by_type"]
    rows = [
        ("draws one object, several alike, one beside another, two objects",
         ", ".join(f"{t2i[kind]:.1%}" for kind in KINDS), f"{counts['t2i']['single']} prompts of each"),
        ("draws a colour and a shape never seen together", f"{t2i['heldout_pairs']:.1%}",
         f"{counts['t2i']['heldout_pairs']} prompts"),
        (f"answers questions; {', '.join(by_type)}",
         f"{report['vqa']['exact_match']:.1%}; {', '.join(f'{v:.0%}' for v in by_type.values())}",
         f"{counts['vqa']['exact_match']} questions"),
        ("edits as told, everything else untouched", f"{report['edit']['exact_match']:.1%}",
         f"{counts['edit']['exact_match']} edits"),
        ("gives a picture back that passes the judge", f"{report['tokenizer']['judge']:.1%}",
         f"{counts['tokenizer']['judge']} scenes"),
        ("scored scenes and prompts that were in training",
         f"{report['leakage']['scenes']} and {report['leakage']['prompts']}",
         f"of {counts['leakage']['scenes']} and {counts['leakage']['prompts']}"),
        ("seconds in all", f"{report['seconds']['total']:.0f}", f"{report['machine']['cores']} CPU cores"),
    ]
    return "| on scenes and prompts never trained on | score | of |\n|---|---|---|\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in rows)


def main(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    kept = {name: report[name] for name in KEPT}
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "demo.json").write_text(json.dumps(kept, indent=1) + "\n")
    prompts = [shapes.evaluation_prompts(kind, 200, 0)[n] for n in range(2) for kind in KINDS]
    pictures = draw(open_run(run), [[Text(prompt)] for prompt in prompts], range(len(prompts)))
    write_png(ROOT / "docs" / "demo.png", grid(pictures, prompts, columns=4))
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table(kept) + END + rest.split(END)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
