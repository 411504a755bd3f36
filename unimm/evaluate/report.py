"""report.html: one page that holds everything itself, pictures, charts and style, and asks no network for anything.

The page is `page/report.html`, a Jinja template; here is what it is filled with, the numbers of its charts among it.
Nothing is chosen but by order.
"""

import base64
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment

from unimm.evaluate.scores import Bar, Metrics, Scores, Shown, interval, look_up
from unimm.pictures import to_png
from unimm.words import templates

COLOURS = ("c1", "c2", "c3", "c4", "c6", "c5")
"""Of curves, as CSS variables of the page."""
Labels = list[tuple[float, str]]


class Chart(NamedTuple):
    """A box of 100 x 100, counted from its upper left: paths (look, colour, SVG's `d`) over grid lines, with labels
    at percents of its height (y) and width (x, and above it, where something begins)."""

    paths: list[tuple[str, str, str]]
    x: Labels
    y: Labels
    above: Labels = []
    legend: list[tuple[str, str, float]] = []
    """Name, colour and last value of each curve."""


def parts() -> Environment:
    """The page and its parts, with what they ask of values; `png` of uint8 (height, width, 3) is in base64."""
    return templates(Path(__file__).with_name("page"), markup=True, interval=interval, log=math.log, look_up=look_up,
                     pick=pick, json=lambda value: json.dumps(value, indent=2),
                     png=lambda picture: base64.b64encode(to_png(picture, optimize=True)).decode())


def page(report: dict, found: list[tuple[Bar, float]], scores: Scores, metrics: Metrics) -> str:
    """The whole page; `report` as in report.json, `found` the bars with their values.

    missed   the keys of those that were not reached
    losses   Chart of the stages that read "tokens", and of those that read "images"
    codes    Chart of how often each code occurred, by codebook
    """
    losses: dict[str, Metrics] = {}
    for name, stage in report["stages"].items():
        unit = "tokens" if "tokens" in stage else "images"
        losses.setdefault(unit, {})[name] = [line for line in metrics[name] if "loss" in line]
    return parts().get_template("report.html").render(
        report=report, scores=scores, found=found,
        missed=[key for key, bar in report["bars"].items() if not bar["met"]],
        losses={unit: curves(stages) for unit, stages in losses.items()},
        codes={name: ranked(counts) for name, counts in scores.code_counts.items()})


def pick(items: Sequence[Shown], most: int, wrong: int) -> list[Shown]:
    """The first `most`, in order, but the last `wrong` of them give way to the next failures, where there are any."""
    failures = [n for n in range(max(0, most - wrong), len(items)) if not items[n].ok][:wrong]
    others = [n for n in range(len(items)) if n not in failures][:most - len(failures)]
    return [items[n] for n in others + failures]


def rounds(high: float) -> Labels:
    """0 and about 5 round numbers up to `high`, at percents of it."""
    power = 10.0 ** math.floor(math.log10(max(high, 1) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if high / (m * power) <= 5)
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


def thinned(values: np.ndarray, most: int = 300) -> np.ndarray:
    """(n, ...) -> at most `most` means of equal runs."""
    return np.array([run.mean(0) for run in np.array_split(values, min(most, len(values)))])


def curves(stages: Metrics) -> Chart:
    """The parts of the loss over the steps of all stages, one stage behind the other, on a logarithmic axis: each
    reading faint; strong the mean of it and its neighbours, a fortieth of all to either side."""
    given: dict[str, list[tuple[float, float]]] = defaultdict(list)
    begins, steps = [], 0
    for stage, lines in stages.items():
        begins.append((steps, stage))
        for line in lines:
            for name in [key for key in line if key.startswith("loss/")] or ["loss"]:
                given[name].append((steps + line["step"], line[name]))
        steps += lines[-1]["step"]
    drawn = [(name, colour, *thinned(np.array(given[name])).T)
             for name, colour in zip(sorted(given, reverse=True), COLOURS)]
    most = max(x.max() for *_, x, _ in drawn)
    positive = [value for *_, y in drawn for value in y if value > 0] or [1.0]
    low, high = min(positive) / 1.15, max(positive) * 1.15
    faint, strong = [], []
    for _, colour, x, y in drawn:
        reach = max(1, len(y) // 40)
        averaged = np.array([y[max(0, n - reach):n + reach + 1].mean() for n in range(len(y))])
        for paths, look, values in ((faint, "faint", y), (strong, "strong", averaged)):
            points = zip(100 * x / most, heights(values, low, high))
            paths.append((f"curve {look}", colour, "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in points)))
    legend = [(name.removeprefix("loss/"), colour, given[name][-1][1]) for name, colour, *_ in drawn]
    above = [(100 * at / most, name) for at, name in begins] if len(begins) > 1 else []
    return Chart(faint + strong, rounds(most), logarithmic(low, high), above, legend)


def ranked(counts: np.ndarray) -> Chart:
    """How often each code occurs, most used first, on a logarithmic axis; counts int (codes,)."""
    ordered = thinned(np.sort(counts)[::-1], 1000)
    high = max(2.0, counts.max() * 1.3)
    tops = heights(ordered[ordered > 0] + 0.3, 0.9, high)
    steps = "".join(f"V{top:.2f}H{100 * (n + 1) / len(ordered):.3f}" for n, top in enumerate(tops))
    return Chart([("area", "c1", f"M0 100{steps}V100Z")], rounds(len(counts)), logarithmic(0.9, high))
