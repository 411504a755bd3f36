"""Numbers as people say them: spans of time, counts, bytes; tables of words; and templates that such words go into."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path


def span(seconds: float) -> str:
    """20.00 ms, 8.4 s, 8 min 41 s, 10 min, 3 h 5 min, 12.5 days."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds >= 1 or not seconds else f"{seconds * 1000:.2f} ms"
    if whole >= 86400:
        return f"{seconds / 86400:,.1f} days"
    large, small, names = (whole // 60, whole % 60, ("min", "s")) if whole < 3600 else (
        whole // 3600, whole // 60 % 60, ("h", "min"))
    return f"{large} {names[0]}" + (f" {small} {names[1]}" if small else "")


def count(number: float) -> str:
    """812, 41 k, 2.0 M, 1.5 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:,.{int(number < 10 * limit)}f} {unit}"
    return f"{number:g}"


def size(number: float) -> str:
    """Bytes in decimal units, as disks and networks are sold."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} PB"


def columns(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Rows of equally many cells as lines; the columns numbered in `left` begin alike, the others end alike."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
            for row in rows]


def templates(folder: Path, markup: bool = False, **filters: Callable):
    """The Jinja templates of a folder, with `filters` beside those for numbers; with `markup`, values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(loader=FileSystemLoader(folder), autoescape=markup, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"count": count, "size": size, "span": span} | filters
    return made
