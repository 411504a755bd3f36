"""docs/systems.md from docs/systems.json and the docstrings of recipes: numbers are generated, prose is theirs.

    python -m tools.systems_page

writes the page again, as after a change of a docstring. `tools/run_systems.py` writes both.
"""

import ast
import json
from pathlib import Path

from unimm.evaluate.scores import interval
from unimm.systems import SCORES, read_results, score

ROOT = Path(__file__).parents[1]
HEAD = """# Ten systems

Written by `tools/run_systems.py` from docs/systems.json and the docstrings of `recipes/toys` and `recipes/systems`.
Every system is trained at toy scale, on the world of coloured shapes, through the code that its published scale takes;
it is scored on scenes and prompts that training never saw. Shares have 95 % intervals (Wilson 1927); `unimm systems`
prints the table. Seconds are wall time of one process with one thread, two such side by side; whatever else the machine
does lengthens them.
"""
NAMES = {"t2i.single": "draws one object", "t2i.count": "draws several alike",
         "t2i.relation": "draws one beside another", "t2i.two": "draws two objects",
         "t2i.heldout_pairs": "draws a colour and a shape never seen together",
         "vqa.exact_match": "answers questions", "edit.exact_match": "edits as told",
         "rounds.first": "first edit in turn", "rounds.second": "second edit in turn",
         "rounds.third": "third edit in turn",
         "tokenizer.judge": "gives pictures back"}
MEASURES = {"tokenizer.tokens.mean": "tokens", "tokenizer.psnr": "PSNR, dB", "tokenizer.ssim": "SSIM",
            "tokenizer.judge": "judged right", "tokenizer.rfid.random": "Frechet, untrained features",
            "tokenizer.rfid.features": "Frechet, own features", "tokenizer.probe.colour": "colour read linearly",
            "tokenizer.probe.shape": "shape read linearly", "tokenizer.words.all": "words still read"}


BARS = {"t2i.single": 0.8, "vqa.exact_match": 0.7}
"""What each toy scale is to reach."""


def short(system: dict) -> str:
    """By how much a system misses its bars, in words; "" where it does not."""
    found = [f"{NAMES[key]} {100 * (bar - value[0]):.1f} points below {bar:.0%}" for key, bar in BARS.items()
             if (value := score(system, key)) and value[0] < bar]
    return f"Short of what a toy scale is to reach: {', '.join(found)}.\n" if found else ""


def prose(name: str, root: Path = ROOT) -> tuple[str, str]:
    """The docstrings of a toy recipe and of the published one that it is made from; "" for what is not there."""
    path = root / "recipes" / "toys" / f"{name}.py"
    if not path.is_file():
        return "", ""
    tree = ast.parse(path.read_text())
    published = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
                 and node.module == "recipes.systems" for alias in node.names]
    above = root / "recipes" / "systems" / f"{published[0]}.py" if published else path
    return ast.get_docstring(tree) or "", (ast.get_docstring(ast.parse(above.read_text())) or "") if published else ""


def _share(found: tuple[float, int]) -> str:
    low, high = interval(*found)
    return f"{found[0]:.1%} ({low:.1%} to {high:.1%}) of {found[1]}"


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def section(name: str, system: dict, toy: str, published: str) -> str:
    """A system: what it is, how the toy differs, its axes, what it reached."""
    found = [f"## {name.replace('_', ' ')}\n", *(f"{text}\n" for text in (published, toy) if text)]
    found.append(_table([[*system["axes"]], [*system["axes"].values()]]))
    rows = [["score", "reached"], *([words, _share(value)] for key, words in NAMES.items()
                                    if (value := score(system, key)))]
    rows += [[f"nats a token of text after {key.removeprefix('text.nats.')}", f"{value:.3f} over {count:,} tokens"]
             for key, (value, count) in system["scores"].items() if key.startswith("text.nats.")]
    rows += [["tokens of an image", f"{system['tokens']['mean']:g}, {system['tokens']['least']:g} to "
                                    f"{system['tokens']['most']:g}"],
             ["parameters", ", ".join(f"{n.replace('_', ' ')} {count:,}" for n, count in system["parameters"].items())],
             ["seconds", ", ".join(f"{stage} {s:.0f}" for stage, s in system["seconds"].items())]]
    found += [_table(rows), short(system)] if short(system) else [_table(rows)]
    found.append(f"Trained at commit {system['commit'] or 'unknown'}, {system['date']}, "
                 f"torch {system['machine']['torch']}.\n")
    return "\n".join(found)


def tokenizers(systems: dict[str, dict]) -> str:
    """All tokenizers in one table, then how their codes are used."""
    keys = [key for key in MEASURES if any(score(system, key) for system in systems.values())]
    rows = [["system", "seconds", *(MEASURES[key] for key in keys)]]
    for name, system in systems.items():
        spent = f"{system['seconds'].get('tokenizer', 0):.0f}"
        rows.append([name, spent, *(f"{found[0]:.3g}" if (found := score(system, key)) else "-" for key in keys)])
    codes = [["codebook", "used", "of", "entropy, bits", "perplexity", "Zipf slope"]]
    for name, system in systems.items():
        books = dict.fromkeys(key.split(".")[2] for key in system["scores"] if key.startswith("tokenizer.codes."))
        for book in books:
            of = {kind: system["scores"][f"tokenizer.codes.{book}.{kind}"][0]
                  for kind in ("used", "size", "entropy", "perplexity", "zipf")}
            codes.append([f"{name}, {book.replace('_', ' ')}", f"{of['used']:.0f}", f"{of['size']:.0f}",
                          f"{of['entropy']:.2f}", f"{of['perplexity']:.1f}", f"{of['zipf']:.2f}"])
    return "\n".join([
        "## Tokenizers beside one another\n",
        "As the systems above have them, after the seconds that each took; at equal budget they stand under "
        "Comparisons. The measures are those of `unimm/images/measure.py`, on the same unseen scenes. Frechet "
        "distances are of features of few pictures: they compare rows of this table, not with other tables. Words are "
        "never in training.\n",
        _table(rows), _table(codes)])


def compared(comparisons: dict[str, dict]) -> str:
    found = ["## Comparisons\n"]
    for comparison in comparisons.values():
        keys = list(dict.fromkeys(key for row in comparison["rows"].values() for key in row))
        rows = [["", *keys]]
        for label, row in comparison["rows"].items():
            rows.append([label, *("-" if key not in row else _value(key, *row[key]) for key in keys)])
        found += [f"{comparison['question']}\n", _table(rows)]
    return "\n".join(found)


def _value(key: str, value: float, count: int) -> str:
    plain = ("psnr", "ssim", "random", "features", "mean", "words.all")
    return f"{value:.3g}" if key.endswith(plain) else _share((value, count))


def page(kept: dict, root: Path = ROOT) -> str:
    """docs/systems.md of docs/systems.json."""
    systems = kept["systems"]
    rows = [["system", "image in", "image out", *(NAMES[key] for key in SCORES), "seconds"]]
    for name, system in systems.items():
        shares = (score(system, key) for key in SCORES)
        rows.append([name, system["axes"]["image in"], system["axes"]["image out"],
                     *(f"{found[0]:.1%}" if found else "-" for found in shares), f"{system['seconds']['total']:.0f}"])
    toys = (root / "recipes" / "toys").glob("*.py")
    missing = sorted(path.stem for path in toys if "recipe = " in path.read_text() and path.stem not in systems)
    told = [f"Not trained yet: {', '.join(missing)}.\n"] if missing else []
    sections = [section(name, system, *prose(name, root)) for name, system in systems.items()]
    parts = [HEAD, _table(rows), *told, *sections]
    parts += [tokenizers(systems)] if systems else []
    parts += [compared(kept["comparisons"])] if kept["comparisons"] else []
    return "\n".join(parts)


def write(kept: dict, docs: Path) -> None:
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "systems.json").write_text(json.dumps(kept, indent=1) + "\n")
    (docs / "systems.md").write_text(page(kept))


if __name__ == "__main__":
    write(read_results(ROOT / "docs" / "systems.json"), ROOT / "docs")
