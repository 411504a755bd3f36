"""Charts as inline SVG. Curves stretch to any width; their labels are HTML beside them, so a phone can read them.

Colours are CSS variables of the page (`report.css`), so the charts follow light and dark.
"""

import base64
import math
from collections.abc import Sequence as Many
from html import escape

import numpy as np

from unimm.pictures import to_png

Curve = tuple[str, Many[float], Many[float]]
"""(colour variable, x, y)"""


def png(picture: np.ndarray, alt: str) -> str:
    """An <img> that holds the picture, uint8 (height, width, 3), itself."""
    data = base64.b64encode(to_png(picture, optimize=True)).decode()
    return (f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{picture.shape[1]}" '
            f'height="{picture.shape[0]}">')


def _svg(kind: str, height: int, inside: str, label: str = "") -> str:
    """Shapes in a box of 100 x `height` that stretches to its place. Without a label it only repeats what text says."""
    says = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="{kind}" viewBox="0 0 100 {height}" preserveAspectRatio="none" {says}>{inside}</svg>'


def meter(share: float, colour: str, bar: float | None, between: tuple[float, float], chance: float | None) -> str:
    """A share in [0, 1] as a bar, pale between the ends of its interval, with a line to reach and a gap at chance."""
    def part(look: str, start: float, end: float) -> str:
        return f'<rect {look} x="{100 * start:.2f}" width="{100 * (end - start):.2f}" y="7" height="10"/>'

    low, high = between
    fill = f'fill="var(--{colour})"'
    parts = [part('class="track"', 0, 1), part(f'{fill} opacity=".35"', 0, high), part(fill, 0, share),
             part('class="unsure"', low, share)]
    parts += [f'<path class="chance" d="M{100 * chance:.2f} 7V17"/>'] if chance is not None else []
    parts += [f'<path class="goal" d="M{100 * bar:.2f} 2V22"/>'] if bar is not None else []
    return _svg("meter", 24, "".join(parts))


def ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5 x 10^n in a range, or only the powers of ten where those are many."""
    powers = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    return found if len(found) <= 7 else [power for power in powers if low <= power <= high]


def rounds(high: float, parts: int = 5) -> list[float]:
    """0 and about `parts` round numbers up to `high`."""
    power = 10.0 ** math.floor(math.log10(max(high, 1) / parts))
    step = next(m * power for m in (1, 2, 5, 10) if high / (m * power) <= parts)
    return [n * step for n in range(int(high / step) + 1)]


def _log(value: float, low: float, high: float) -> float:
    """Where a value is on a logarithmic axis, in percent from the top."""
    return 100 - 100 * (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))


def plot(label: str, inside: str, x_labels: list[tuple[float, str]], y_labels: list[tuple[float, str]]) -> str:
    """Shapes in a box of 100 x 100 over grid lines, with labels at percents of its width and height."""
    grid = "".join(f'<path class="grid" d="M0 {y:.2f}H100"/>' for y, _ in y_labels)
    left = "".join(f'<span style="top:{y:.2f}%">{text}</span>' for y, text in y_labels)
    below = "".join(f'<span style="left:{x:.2f}%">{text}</span>' for x, text in x_labels)
    return (f'<div class="plot"><div class="y">{left}</div>{_svg("", 100, grid + inside, label)}'
            f'<div class="x">{below}</div></div>')


def thinned(values: np.ndarray, most: int = 300) -> np.ndarray:
    """float (n,) -> at most `most` means of equal runs."""
    return np.array([run.mean() for run in np.array_split(values, min(most, len(values)))])


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, a fortieth of all to either side: (n,) -> (n,), without a lag."""
    reach = max(1, len(values) // 40)
    return np.array([values[max(0, n - reach):n + reach + 1].mean() for n in range(len(values))])


def curves(label: str, given: Many[Curve], boundaries: Many[tuple[float, str]] = ()) -> str:
    """Curves over steps on a logarithmic axis: each reading faint, its average strong.

    `boundaries` are (step, what begins there).
    """
    given = [(colour, thinned(np.asarray(x, float)), thinned(np.asarray(y, float))) for colour, x, y in given]
    most = max(x.max() for _, x, _ in given)
    values = np.concatenate([y for _, _, y in given])
    values = values[values > 0] if (values > 0).any() else np.ones(1)
    low, high = values.min() / 1.15, values.max() * 1.15
    inside = [f'<path class="boundary" d="M{100 * at / most:.2f} 0V100"/>' for at, _ in boundaries if at > 0]
    for line in ("faint", "strong"):
        for colour, x, y in given:
            points = zip(100 * x / most, smoothed(y) if line == "strong" else y)
            d = "L".join(f"{a:.2f} {_log(b, low, high):.2f}" for a, b in points)
            inside.append(f'<path class="curve {line}" stroke="var(--{colour})" d="M{d}"/>')
    x_labels = [(100 * x / most, f"{x:,.0f}") for x in rounds(most)]
    names = "".join(f'<span style="left:{100 * at / most:.2f}%">{escape(name)}</span>' for at, name in boundaries)
    chart = plot(label, "".join(inside), x_labels, [(_log(y, low, high), f"{y:g}") for y in ticks(low, high)])
    return f'<div class="over">{names}</div>{chart}' if names else chart


def ranked(label: str, counts: np.ndarray) -> str:
    """How often each code occurs, most used first, on a logarithmic axis; counts int (codes,)."""
    ordered = thinned(np.sort(counts)[::-1], 1000)
    high = max(2.0, counts.max() * 1.3)
    width = 100 / len(ordered)
    used = ordered[ordered > 0]
    tops = [_log(n + 0.3, 0.9, high) for n in used]
    steps = "".join(f"V{top:.2f}H{width * (n + 1):.3f}" for n, top in enumerate(tops))
    inside = f'<path class="area" d="M0 100{steps}V100Z"/>'
    y_labels = [(_log(y, 0.9, high), f"{y:,.0f}") for y in ticks(1, high)]
    return plot(label, inside, [(100 * x / len(counts), f"{x:,.0f}") for x in rounds(len(counts))], y_labels)


def stacked(parts: list[tuple[str, float]]) -> str:
    """Named amounts as one bar of segments, coloured in turn by the classes s0 to s5."""
    widths = np.array([amount for _, amount in parts]) * 100 / (sum(amount for _, amount in parts) or 1.0)
    starts = np.cumsum(widths) - widths
    return _svg("stack", 10, "".join(f'<rect class="s{n % 6}" x="{start:.3f}" width="{width:.3f}" height="10"/>'
                                     for n, (start, width) in enumerate(zip(starts, widths))))
