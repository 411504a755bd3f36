"""`unimm show`: a recipe as a person reads it: its axes, its stages, one rendered sample per task."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np

from unimm.config.data import ChatJsonl, Emoji, Shapes, Source
from unimm.config.images import OwnTokenizer
from unimm.config.recipe import Recipe
from unimm.layout import Layout
from unimm.sample import Batch, Codes, Image, Latents, Level, Sample, Text, sample
from unimm.stream.tasks import as_task
from unimm.system import layout_of, text_of
from unimm.text import BytesTokenizer
from unimm.words import templates

BOLD, GREEN, DIM, PLAIN = "\033[1m", "\033[1;32m", "\033[2m", "\033[0m"


def show(recipe: Recipe, colour: bool) -> list[str]:
    """The lines that `unimm show RECIPE` prints, the template `show.txt.jinja` filled in.

    lengths  the least and the most positions of each level
    tokens   of an image of each size
    bytes    whether bytes stand in for a tokenizer that is not at hand
    samples  title and words of each of `examples`
    """
    layout = layout_of(recipe, text_of(recipe, None))
    plan, sampling = layout.write_plans[recipe.layout.sizes[0]], vars(recipe.sampling)
    bold, green, dim, plain = (BOLD, GREEN, DIM, PLAIN) if colour else ("",) * 4
    return templates(Path(__file__).parent, described=described).get_template("show.txt.jinja").render(
        recipe=recipe, layout=layout, own=isinstance(recipe.image_tokenizer, OwnTokenizer),
        lengths=[plan.lengths(n) for n in range(len(plan.grids))],
        tokens=[layout.tokens(size) for size in recipe.layout.sizes],
        sampling=" ".join(f"{n}={value!r}".replace("Choice", "") for n, value in sampling.items() if value != ""),
        bytes=isinstance(layout.text, BytesTokenizer), bold=bold, green=green, dim=dim, plain=plain,
        samples=[(title, in_words(layout, made.ids, made.learn, colour))
                 for title, made in ((title, layout.render(each)) for title, each in examples(recipe, layout))],
    ).splitlines()


def described(config, every: bool = True, but: tuple[str, ...] = ()) -> str:
    """A config value as `kind field=value ...`, without the fields of `but`; without `every`, fields at their defaults
    are left out."""
    shown = [f"{f.name}={_value(getattr(config, f.name))}" for f in fields(config)
             if f.name not in ("kind", *but) and (every or getattr(config, f.name) != f.default)]
    return " ".join([config.kind, *shown])


def _value(value) -> str:
    """A field's value; configs within another in parentheses, without their defaults."""
    configs = value if isinstance(value, tuple) else (value,)
    if configs and all(map(is_dataclass, configs)):
        return f"({', '.join(described(config, every=False) for config in configs)})"
    return f"{value}"


def examples(recipe: Recipe, layout: Layout) -> Iterator[tuple[str, Sample]]:
    """One sample for each dataset and task that a stage of the language model uses."""
    seen = dict.fromkeys((use.data, use.task) for stage in recipe.language.values() for use in stage.mix)
    for data, task in seen:
        made = as_task(task, data, _first(recipe.data[data], layout))
        yield f"{data}, {task}", Sample(tuple(
            replace(p, content=_codes(layout, p.learn)) if isinstance(p, Image) else p for p in made.parts))


def _first(source: Source, layout: Layout) -> Sample:
    """A dataset's first sample where it is built in; an invented one where files would have to be opened."""
    match source:
        case Shapes(part=part, seed=seed):
            from data.shapes import PARTS

            return next(iter(PARTS[part](1, seed)))
        case ChatJsonl():
            return sample(Image(_codes(layout, False), role="user"), Text("what is this?", role="user"),
                          Text("a red circle", True, "assistant"))
        case _:
            words = "grinning face" if isinstance(source, Emoji) else "a red circle"
            return sample(Image(_codes(layout, False)), Text(words))


def _codes(layout: Layout, learn: bool) -> Codes | Latents:
    """Codes of the layout's first size, counting up, or nothing where features are read."""
    read = None if learn else layout.config.read
    plan, levels = next(iter((layout.read_plans if read else layout.write_plans).values())), []
    for number, (level, grid) in enumerate(zip((read or layout.config.write).levels, plan.grids)):
        n = plan.lengths(number)[0]
        if level.space in layout.continuous:
            return Latents(np.zeros((n, layout.continuous[level.space].channels), np.float32), grid)
        book = layout.vocab.ranges[level.space]
        levels.append(Level(np.arange(n * book.depth).reshape(n, book.depth) % book.codes, grid))
    return Codes(tuple(levels))


def batch_in_words(layout: Layout, batch: Batch) -> list[list[str]]:
    """The documents of each packed row, learned tokens in «»."""
    rows = []
    for ids, learn, document in zip(*map(np.asarray, (batch.ids, batch.learn, batch.document))):
        target = np.append(False, learn[:-1])  # `learn` is of the id that follows
        rows.append([in_words(layout, ids[document == n], target[document == n], colour=False)
                     for n in range(1, document.max() + 1)])
    return rows


def in_words(layout: Layout, ids: np.ndarray, learned: np.ndarray, colour: bool) -> str:
    """ids int (T,), learned bool (T,) as one line: learned tokens green, in «» without colour; long runs shortened."""
    is_text, is_code = layout.vocab.is_text[ids], layout.vocab.is_code[ids]
    is_code |= np.isin(ids, list(layout.placeholders.values()))
    ends = layout.row_ends()
    is_code |= np.isin(ids, list(ends)) & np.append(False, is_code[:-1])
    # Alike are neighbours of one run: text that is learned, text that is not, codes with the ends of their rows.
    alike = np.where(is_text, learned, np.where(is_code, 2, 3 + np.arange(len(ids))))
    words: list[tuple[str, bool]] = []
    for run in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(alike)) + 1):
        some, learn = ids[run].tolist(), learned[run[0]]
        if is_text[run[0]]:
            words.append((layout.text.decode(some).replace("\n", "\\n"), learn))
        else:
            words += [(("... " if cut else "") + layout.name(i), learn) for i, cut in _shortened(some, ends)]
    mark = (lambda w: f"{GREEN}{w}{PLAIN}") if colour else (lambda w: f"«{w}»")
    return " ".join(mark(word) if learn else word for word, learn in words)


def _shortened(ids: list[int], ends: set[int]) -> list[tuple[int, bool]]:
    """Some of an image's ids, each with whether others were left out before it."""
    row = next((n for n, i in enumerate(ids) if i in ends), len(ids))
    last = len(ids) - 2 if ids[-1] in ends else len(ids) - 1
    kept = [n for n in range(len(ids)) if n < 4 or row - 1 <= n <= row + 1 or n >= last]
    return [(ids[n], k > 0 and n > kept[k - 1] + 1) for k, n in enumerate(kept)]
