"""report.html: one page that holds everything itself, pictures, charts and style, and asks no network for anything.

The page is `page/report.html`, a Jinja template; here is what it is filled with, the numbers of its charts among it.
Nothing is chosen but by order.
"""

import base64
import json
import math
from collections import defaultdict
from collections.abc import Sequence as Many
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment

from unimm.evaluate.scores import Bar, Metrics, Scores, Shown, interval, look_up
from unimm.pictures import to_png
from unimm.words import templates

COLOURS = ("c1", "c2", "c3", "c4", "c6", "c5")
"""Of curves, as CSS variables of the page."""
Curve = tuple[str, Many[float], Many[float]]
"""(colour variable, x, y)"""
Labels = list[tuple[float, str]]


class Chart(NamedTuple):
    """A box of 100 x 100, counted from its upper left: paths (look, colour, SVG's `d`) over grid lines, with labels
    at percents of its height (y) and width (x, and above it, where something begins)."""

    paths: list[tuple[str, str, str]]
    x: Labels
    y: Labels
    above: Labels = []


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
    given: dict[str, list[tuple[float, float]]] = defaultdict(list)
    begins, first = [], 0
    for stage, lines in stages.items():
        begins.append((first, stage))
        for line in lines:
            for name in [key for key in line if key.startswith("loss/")] or ["loss"]:
                given[name].append((first + line["step"], line[name]))
        first += lines[-1]["step"]
    drawn = list(zip(COLOURS, sorted(given, reverse=True)))
    last = [(name.removeprefix("loss/"), colour, given[name][-1][1]) for colour, name in drawn]
    return last, curves([(colour, *zip(*given[name])) for colour, name in drawn], begins if len(begins) > 1 else ())


def rounds(high: float, parts: int = 5) -> Labels:
    """0 and about `parts` round numbers up to `high`, at percents of it."""
    power = 10.0 ** math.floor(math.log10(max(high, 1) / parts))
    step = next(m * power for m in (1, 2, 5, 10) if high / (m * power) <= parts)
    return [(100 * n * step / high, f"{n * step:,.0f}") for n in range(int(high / step) + 1)]


def heights(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where values are on a logarithmic axis, in percent from the top."""
    return 100 - 100 * np.log(np.maximum(values, low) / low) / np.log(high / low)


def logarithmic(low: float, high: float) -> Labels:
    """The numbers 1, 2, 5 x 10^n in a range, or only the powers of ten where those are many, at their heights."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    finer, powers = (marks[(low <= marks) & (marks <= high)] for marks in (np.outer(powers, (1, 2, 5)).ravel(), powers))
    marks = finer if len(finer) <= 7 else powers
    return [(y, f"{mark:,g}") for y, mark in zip(heights(marks, low, high), marks)]


def thinned(values: Many[float], most: int = 300) -> np.ndarray:
    """float (n,) -> at most `most` means of equal runs."""
    return np.array([run.mean() for run in np.array_split(np.asarray(values, float), min(most, len(values)))])


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, a fortieth of all to either side: (n,) -> (n,), without a lag."""
    reach = max(1, len(values) // 40)
    return np.array([values[max(0, n - reach):n + reach + 1].mean() for n in range(len(values))])


def curves(given: Many[Curve], begins: Many[tuple[float, str]] = ()) -> Chart:
    """Curves over steps on a logarithmic axis: each reading faint, its average strong.

    `begins` are (step, what begins there).
    """
    given = [(colour, thinned(x), thinned(y)) for colour, x, y in given]
    most = max(x.max() for _, x, _ in given)
    values = np.concatenate([y for _, _, y in given])
    values = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = values.min() / 1.15, values.max() * 1.15
    paths = []
    for look, averaged in (("faint", lambda y: y), ("strong", smoothed)):
        for colour, x, y in given:
            points = zip(100 * x / most, heights(averaged(y), low, high))
            paths.append((f"curve {look}", colour, "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in points)))
    return Chart(paths, rounds(most), logarithmic(low, high), [(100 * at / most, name) for at, name in begins])


def ranked(counts: np.ndarray) -> Chart:
    """How often each code occurs, most used first, on a logarithmic axis; counts int (codes,)."""
    ordered = thinned(np.sort(counts)[::-1], 1000)
    high = max(2.0, counts.max() * 1.3)
    tops = heights(ordered[ordered > 0] + 0.3, 0.9, high)
    steps = "".join(f"V{top:.2f}H{100 * (n + 1) / len(ordered):.3f}" for n, top in enumerate(tops))
    return Chart([("area", "c1", f"M0 100{steps}V100Z")], rounds(len(counts)), logarithmic(0.9, high))
