"""The numbers of charts; `page/parts.html` draws them, in colours that are CSS variables of the page."""

import math
from collections.abc import Sequence as Many
from typing import NamedTuple

import numpy as np

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


def ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5 x 10^n in a range, or only the powers of ten where those are many."""
    powers = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    return found if len(found) <= 7 else [power for power in powers if low <= power <= high]


def rounds(high: float, parts: int = 5) -> Labels:
    """0 and about `parts` round numbers up to `high`, at percents of it."""
    power = 10.0 ** math.floor(math.log10(max(high, 1) / parts))
    step = next(m * power for m in (1, 2, 5, 10) if high / (m * power) <= parts)
    return [(100 * n * step / high, f"{n * step:,.0f}") for n in range(int(high / step) + 1)]


def heights(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where values are on a logarithmic axis, in percent from the top."""
    return 100 - 100 * np.log(np.maximum(values, low) / low) / np.log(high / low)


def logarithmic(low: float, high: float) -> Labels:
    marks = ticks(low, high)
    return [(y, f"{mark:,g}") for y, mark in zip(heights(np.array(marks), low, high), marks)]


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
