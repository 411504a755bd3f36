"""The report's pictures: what was asked, what came, and whether it was right. Nothing is chosen but by order."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from html import escape

import numpy as np

from unimm.evaluate.charts import png
from unimm.evaluate.scores import Scores, Shown


def mark(ok: bool) -> str:
    return '<span class="mark" title="right">✓</span>' if ok else '<span class="mark no" title="wrong">✗</span>'


def pick(items: Many[Shown], most: int, wrong: int) -> list[Shown]:
    """The first `most`, in order, but the last `wrong` of them give way to the next failures, where there are any."""
    failures = [n for n in range(max(0, most - wrong), len(items)) if not items[n].ok][:wrong]
    others = [n for n in range(len(items)) if n not in failures][:most - len(failures)]
    return [items[n] for n in others + failures]


def section(title: str, note: str, *inside: str) -> str:
    return f'<section><h2>{title}</h2><p class="note">{note}</p>{"".join(inside)}</section>'


def _by_kind(items: Many[Shown], most: int, wrong: int, figure: Callable[[Shown], str], style: str) -> str:
    """A heading with the share that is right and a grid of figures for every kind; more of a lone kind."""
    out, kinds = [], dict.fromkeys(item.kind for item in items)
    most, wrong = (20, 4) if len(kinds) == 1 else (most, wrong)
    for kind in kinds:
        some = [item for item in items if item.kind == kind]
        right = sum(item.ok for item in some)
        figures = "".join(figure(item) for item in pick(some, most, wrong))
        out.append(f'<h3>{escape(kind.replace("_", " "))}<span>{right} of {len(some)} right</span></h3>'
                   f'<div class="gallery {style}">{figures}</div>')
    return "".join(out)


def _figure(item: Shown, *pictures: tuple[str, np.ndarray]) -> str:
    """Named pictures side by side, or one without a name, above what was said and what the judge saw in a wrong one."""
    if len(pictures) == 1:
        shown = png(pictures[0][1], item.text)
    else:
        cells = "".join(f"<div>{png(picture, name)}<span>{name}</span></div>" for name, picture in pictures)
        shown = f'<div class="row">{cells}</div>'
    why = escape(item.why) if not item.ok else ""
    why = f"<small>{why}</small>" if item.text and why else why
    said = f"{mark(item.ok)}{escape(item.text)}{why}" if item.text or why else ""
    return f"<figure>{shown}<figcaption>{said}</figcaption></figure>"


def drawing(item: Shown) -> str:
    return _figure(item, ("drawn", item.got), *([] if item.truth is None else [("meant", item.truth)]))


def edit(item: Shown) -> str:
    return _figure(item, ("before", item.given), ("after", item.got), *([] if item.ok else [("meant", item.truth)]))


def reconstruction(item: Shown) -> str:
    return _figure(item, ("original", item.given), ("given back", item.got))


def question(item: Shown) -> str:
    wrong = "" if item.ok else f"<small>it is: {escape(str(item.truth))}</small>"
    said = escape(item.got) or '<span class="soft">nothing</span>'
    return (f'<figure>{png(item.given, item.text or "shown")}<figcaption>{escape(item.text)}'
            f"<b>{mark(item.ok)}{said}</b>{wrong}</figcaption></figure>")


def hero(scores: Scores, most: int = 6) -> str:
    """The very first picture of every kind, for the page's head."""
    firsts = {item.kind: item for item in reversed(scores.pictures)}
    kinds = dict.fromkeys(item.kind for item in scores.pictures)
    found = [firsts[kind] for kind in kinds] if len(kinds) > 1 else scores.pictures
    return f'<div class="hero">{"".join(drawing(item) for item in found[:most])}</div>' if found else ""


def sections(scores: Scores) -> list[str]:
    """A section for each kind of item that was scored."""
    order = "The first of each kind in the order they were scored, and at the end the next that went wrong, if any did."
    codes = f"All that the language model sees of a picture is its codes. {order}"
    beside = "pairs" if scores.pictures and scores.pictures[0].truth is not None else ""
    return [section(title, note, _by_kind(items, most, wrong, figure, style))
            for title, note, items, most, wrong, figure, style in (
                ("Pictures from sentences", order, scores.pictures, 8, 2, drawing, beside),
                ("Questions about pictures", order, scores.questions, 4, 1, question, "talk"),
                ("Edits", order, scores.edits, 3, 1, edit, "edits"),
                ("Through the image tokenizer and back", codes, scores.reconstructions, 10, 1, reconstruction, "pairs"),
            ) if items]
