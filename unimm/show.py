"""`unimm show`: a recipe as a person reads it: its axes, its stages, one rendered sample per task."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

import numpy as np

from unimm.config.data import ChatJsonl, Emoji, Shapes, Source, Use
from unimm.config.images import ConvTokenizer, DualTokenizer, OwnTokenizer, ViTTokenizer
from unimm.config.recipe import Recipe
from unimm.config.stages import NextToken, PictureStage, Stage
from unimm.layout import Layout
from unimm.sample import Batch, Codes, Image, Latents, Level, Sample, Text, sample
from unimm.stream.tasks import as_task
from unimm.system import layout_of, text_of
from unimm.text import BytesTokenizer

BOLD, GREEN, DIM, PLAIN = "\033[1m", "\033[1;32m", "\033[2m", "\033[0m"


def show(recipe: Recipe, colour: bool) -> Iterator[str]:
    """The lines that `unimm show RECIPE` prints."""
    bold, dim, plain = (BOLD, DIM, PLAIN) if colour else ("", "", "")
    layout = layout_of(recipe, text_of(recipe, None))
    yield f"{bold}{recipe.name}{plain}  {recipe.about}"
    yield ""
    for axis, value in axes(recipe, layout).items():
        yield f"  {axis:<16}{value}"
    yield ""
    yield f"{bold}stages{plain}"
    for name, stage in recipe.stages.items():
        yield f"  {name:<12}{stage.objective:<13}{stage.steps:,} steps of {_batch(stage)}, {stage.precision}"
        yield f"  {'':<12}{dim}{described(stage.optimizer, every=False)}{plain}"
        yield f"  {'':<12}{dim}{' + '.join(map(_share, stage.mix))}{plain}"
    yield ""
    learned = f"{GREEN}learned{PLAIN}" if colour else "«learned»"
    note = ""
    if isinstance(layout.text, BytesTokenizer):
        note = "; text as bytes, for " + (
            "the run trains its own tokenizer" if recipe.text.kind == "sentencepiece"
            else f"{recipe.text.path} is no folder here, and its tokenizer is not at hand")
    yield f"{bold}samples{plain}  {learned} and read{note}; the codes stand for any"
    for title, example in examples(recipe, layout):
        sequence = layout.render(example)
        yield f"  {bold}{title}{plain}"
        yield f"    {in_words(layout, sequence.ids, sequence.learn, colour)}"


def _batch(stage: Stage) -> str:
    match stage:
        case PictureStage(batch=images):
            return f"{images} images"
        case NextToken(rows=rows, seq_len=length, step_tokens=tokens):
            return f"{tokens:,} tokens = {rows} rows x {length}"


def _share(use: Use) -> str:
    return f"{use.weight:g} {use.data}" + (f" as {use.task}" if use.task != "as_is" else "")


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


def axes(recipe: Recipe, layout: Layout) -> dict[str, str]:
    """The system on its seven axes, and what they add up to."""
    tokenizer, c = recipe.image_tokenizer, recipe.layout
    counts = [layout.write_plans[c.sizes[0]].lengths(n) for n in range(len(c.write.levels))]
    levels = ", ".join(f"{level.space} ({level.shape.kind} of {f'{least:,} to ' if least < most else ''}{most:,})"
                       for level, (least, most) in zip(c.write.levels, counts))
    codes = ", ".join(f"{r.name} {r.codes:,}" + (f" x {r.depth}" if r.depth > 1 else "") + f" from id {r.start:,}"
                      for r in layout.vocab.ranges.values())
    name, side = tokenizer.kind, f"{tokenizer.image} x {tokenizer.image} px, {tokenizer.downsample} px a code each way"
    if isinstance(tokenizer, OwnTokenizer):
        name = described(tokenizer, False, ("image", "downsample", "quantizer", "semantic", "pixel", "codebook"))
    match tokenizer:
        case DualTokenizer(semantic=semantic, pixel=pixel):
            quantizer = f"{described(semantic)}; {described(pixel)}"
        case ConvTokenizer(quantizer=kind) | ViTTokenizer(quantizer=kind):
            quantizer = described(kind)
        case _:
            quantizer = f"{tokenizer.size:,} codes of {tokenizer.dim}, published: {tokenizer.weights or 'no weights'}"
    features = {"features": described(recipe.features)} if recipe.features else {}
    return {
        "image tokenizer": f"{name}, {side}",
        "quantizer": quantizer,
        **features,
        "image in": described(recipe.image_in),
        "image out": described(recipe.image_out),
        "layout": f"{c.write.begin} {levels} {c.write.end}, ends by {c.write.stop}, unconditional: {c.unconditional}",
        "sizes": sizes(recipe, layout),
        "decoder": described(recipe.decoder),
        "backbone": described(recipe.backbone),
        "text": described(recipe.text),
        "sampling": " ".join(f"{name}={value!r}".replace("Choice", "") for name, value in vars(recipe.sampling).items()
                             if value != ""),
        "vocabulary": f"{layout.vocab.rows:,} rows: {layout.vocab.text_size:,} text, "
                      f"{len(layout.vocab.special)} markers; {codes or 'no codes'}",
    }


def sizes(recipe: Recipe, layout: Layout) -> str:
    """What an image may measure, and how many tokens it takes."""
    pixels, counts = recipe.layout.pixels_per_code, sorted(layout.tokens(size) for size in recipe.layout.sizes)
    h, w = recipe.layout.sizes[0]
    said = f"{w * pixels} x {h * pixels} px in {layout.tokens((h, w)):,} tokens"
    if len(counts) > 1:
        said += f", {len(counts)} sizes of {counts[0]:,} to {counts[-1]:,}"
    return said + (", any other where it is read or learned" if recipe.layout.any_size else "")


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
