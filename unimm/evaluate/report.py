"""report.html: one page that holds everything itself, pictures, charts and style, and asks no network for anything.

The page is `page/report.html`, a Jinja template; here is what it is filled with. Nothing is chosen but by order.
"""

import base64
import json
import math
from collections.abc import Sequence as Many
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment

from unimm.evaluate.charts import Chart, curves, ranked
from unimm.evaluate.scores import Bar, Metrics, Scores, Shown, interval, look_up
from unimm.pictures import to_png
from unimm.words import templates

COLOURS = ("c1", "c2", "c3", "c4", "c6", "c5")


def parts() -> Environment:
    """The page and its parts, with what they ask of values."""
    return templates(Path(__file__).with_name("page"), markup=True, by_kind=by_kind, interval=interval,
                     json=partial(json.dumps, indent=2), look_up=look_up, pick=pick, png=png)


def page(report: dict, bars: tuple[Bar, ...], scores: Scores, metrics: Metrics) -> str:
    """The whole page; `report` as in report.json.

    found    the bars with their values; `missed` are the keys of those that were not reached
    losses   title, note, last values (name, colour, value) and Chart for each kind of stage
    codes    Chart of how often each code occurred, by codebook
    """
    return parts().get_template("report.html").render(
        report=report, scores=scores,
        found=[(bar, value) for bar in bars if (value := look_up(report, bar.key)) is not None],
        missed=[key for key, bar in report["bars"].items() if not bar["met"]],
        losses=list(_losses(report, metrics)),
        codes={name: ranked(counts) for name, counts in scores.code_counts.items()})


def png(picture: np.ndarray) -> str:
    """uint8 (height, width, 3) -> a PNG in base64."""
    return base64.b64encode(to_png(picture, optimize=True)).decode()


def by_kind(items: Many[Shown]) -> dict[str, list[Shown]]:
    """The items of each kind, kinds in the order in which they first occur."""
    return {kind: [item for item in items if item.kind == kind] for kind in dict.fromkeys(i.kind for i in items)}


def pick(items: Many[Shown], most: int, wrong: int) -> list[Shown]:
    """The first `most`, in order, but the last `wrong` of them give way to the next failures, where there are any."""
    failures = [n for n in range(max(0, most - wrong), len(items)) if not items[n].ok][:wrong]
    others = [n for n in range(len(items)) if n not in failures][:most - len(failures)]
    return [items[n] for n in others + failures]


def _losses(report: dict, metrics: Metrics):
    """Curves of the stages of each kind one after another."""
    for unit, title, note in (("tokens", "Language model", _uniform(report)), ("images", "Image tokenizer", "")):
        stages = {name: [line for line in metrics[name] if "loss" in line]
                  for name, stage in report["stages"].items() if unit in stage}
        if stages:
            yield title, note, *_curves(stages)


def _uniform(report: dict) -> str:
    """What the language model's losses are where nothing is known."""
    sizes = dict(report["vocabulary"])
    text = sizes.pop("text")
    codes = ", ".join(f"{math.log(n):.2f} for one of {n:,} codes" for n in sizes.values())
    return f"Nats a token. Guessing blindly costs {codes}, {math.log(text):.2f} for a piece of text."


def _curves(stages: Metrics) -> tuple[list[tuple[str, str, float]], Chart]:
    """The parts of the loss over the steps of all stages, one stage behind the other: last values, and the chart."""
    given: dict[str, tuple[list, list]] = {}
    begins, first = [], 0
    for stage, lines in stages.items():
        begins.append((first, stage))
        for line in lines:
            for name in [key for key in line if key.startswith("loss/")] or ["loss"]:
                steps, values = given.setdefault(name, ([], []))
                steps.append(first + line["step"])
                values.append(line[name])
        first += lines[-1]["step"]
    drawn = list(zip(COLOURS, sorted(given, reverse=True)))
    last = [(name.removeprefix("loss/"), colour, given[name][1][-1]) for colour, name in drawn]
    return last, curves([(colour, *given[name]) for colour, name in drawn], begins if len(begins) > 1 else ())
