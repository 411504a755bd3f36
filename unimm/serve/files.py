"""`unimm sample` and `unimm edit`: pictures as files that say how they were drawn, by any number of processes.

    prompts --> orders --checked--> jobs, without those already drawn --shared among ranks--> PNGs --> labelled grids

Prompts are arguments, or come from files and standard input, each with what is said of it alone:

    a line of text                  a prompt
    a line {"prompt": ..., ...}     a prompt with fields of `Order`; others are let pass, as GenEval's
                                    evaluation_metadata.jsonl has them

A picture is taken for drawn where a whole PNG says that it is of the same prompt, seed, settings and checkpoint.
"""

import difflib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from unimm.checkpoint.folders import MANIFEST
from unimm.config.tokens import Layout
from unimm.disk import DiskError, replace_file, writing
from unimm.errors import UserError
from unimm.generate.request import Request, drawing
from unimm.generate.use import PromptError, asked, check_prompt, drawn
from unimm.pictures import facts_of, from_png, grid, nearest_size, write_png
from unimm.stream.pixels import load_pixels
from unimm.system import System, layout_of, open_run, recipe_of, text_of
from unimm.train import metrics, ranks

SAME = ("prompt", "seed", "size", "images", "sampling", "checkpoint")
"""What makes a picture: two that agree in it are one."""
PAGE = 64
"""The most pictures of one grid."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A prompt and how often, from which seed on and in what size it is drawn.

    size       (height, width) in pixels, or an aspect such as "16:9"; None: the layout's first
    negative   what to draw away from; None: what the run's settings say
    images     files of pictures that the prompt speaks of: an instruction to edit them
    where      the file and line that it came from
    line       that line
    """

    prompt: str = ""
    n: int = 4
    seed: int = 0
    size: tuple[int, int] | str | None = None
    negative: str | None = None
    tag: str = ""
    images: tuple[str, ...] = ()
    where: str = ""
    line: str = ""

    def __post_init__(self):
        if "\0" in self.prompt + (self.negative or ""):
            raise PromptError("a zero character is no text; leave it out")
        if not self.prompt.strip():
            raise PromptError('no prompt; say what to draw, such as: unimm sample RUN "a red circle"')
        if self.n < 1:
            raise PromptError(f"-n is {self.n}; ask for at least one picture")
        if not 0 <= self.seed <= 2**62:
            raise PromptError(f"seed is {self.seed}; it must lie between 0 and 2^62")


AS_ORDER = TypeAdapter(Order)


def read_orders(prompts: tuple[str, ...], file: Path | None, said: Mapping[str, Any]) -> list[Order]:
    """The orders of arguments, of a file, or of standard input, which is read where "-" stands or nothing is given.

    `said` holds the fields of an order that the command line gives; a line's own go before. Raises PromptError.
    """
    if prompts and file:
        raise PromptError("give prompts or --file, not both")
    if prompts not in ((), ("-",)):
        return [Order(prompt=prompt, line=json.dumps({"prompt": prompt}), **said) for prompt in prompts]
    if file and not file.is_file():
        raise PromptError(f"{file}: no such file")
    data = file.read_bytes() if file else b""
    if file is None and (prompts or not os.isatty(0)):
        ranks.start()
        data = ranks.from_first(open(0, "rb", closefd=False).read() if ranks.rank() == 0 else b"")
    text, name = data.decode("utf-8-sig", "surrogateescape"), str(file or "standard input")
    # Lines end at newlines alone: a form feed or U+2028 is part of a prompt.
    lines = [(f"{name}:{n}", line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_order(where, line, said) for where, line in lines] or [Order(**said)]  # the refusal of none


def _order(where: str, line: str, said: Mapping[str, Any]) -> Order:
    try:
        given = json.loads(line) if line.startswith("{") else {"prompt": line}
        order = AS_ORDER.validate_python({**said, **given, "where": where, "line": json.dumps(given)})
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{name}: " for name in first["loc"][:1])
        raise PromptError(f"{where}: {place}{first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise PromptError(f"{where}: not JSON: {error}") from None
    for name in given.keys() - set(vars(order)):
        meant = difflib.get_close_matches(name, ("prompt", "seed", "size", "negative", "images"), 1, cutoff=0.65)
        if meant and meant[0] not in given:
            raise PromptError(f"{where}: no field {name!r}; did you mean {meant[0]!r}?")
    return replace(order, images=tuple(str(Path(where).parent / image) for image in order.images))


def codes_of(layout: Layout, size: tuple[int, int] | str | None, like: Sequence[np.ndarray] = ()) -> tuple[int, int]:
    """Rows and columns of codes of a size in pixels, or of the offered size nearest to an aspect (width:height), or to
    the last of the pictures (height, width, 3) that are edited; else the first.

    Raises PromptError naming what is offered where the size is none of it, or the aspect more than a quarter off.
    """
    side, offered = layout.pixels_per_code, layout.sizes
    if size is None:
        return nearest_size(*like[-1].shape[:2], offered) if like else offered[0]
    named = "this run's (height width) are: " + ", ".join(f"{h * side} {w * side}" for h, w in offered)
    if isinstance(size, str):
        wide, high = (int(n) if n.isdecimal() else 0 for n in size.partition(":")[::2])
        if not wide or not high:
            raise PromptError(f"aspect {size!r} is none; give width and height, such as 16:9")
        rows, columns = nearest_size(high, wide, offered)
        if not 0.8 <= columns * high / (rows * wide) <= 1.25:
            raise PromptError(f"no size near {size}; {named}")
        return rows, columns
    if size not in [(h * side, w * side) for h, w in offered]:
        raise PromptError(f"no size {size[0]} {size[1]}; {named}")
    return size[0] // side, size[1] // side


@dataclass(frozen=True)
class Job:
    """One picture: the order that it is of, that one's number, its own seed, and what its file says of it."""

    order: Order
    number: int
    seed: int
    wish: Request
    facts: dict[str, str]

    @property
    def stem(self) -> str:
        """Its file's name without the seed: words joined by dashes, nothing a file system minds."""
        said = [*(Path(file).stem for file in self.order.images), self.order.prompt]
        return "-".join(re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture" for text in said)


def draw_to_files(run: Path, orders: list[Order], out: Path, changes: Mapping[str, Any], rows: int = 32,
                  geneval: bool = False) -> None:
    """Draw every order, `rows` pictures at a time, each rank its share; rank 0 ends with grids and a summary.

    `changes` are flat changes of the run's own sampling settings, see `Sampling.changed`.

    Raises PromptError, ImageError, ConfigError before weights are read, and DiskError; PromptError where
    a GenEval folder holds pictures that were drawn otherwise.
    """
    ranks.start()
    late = ranks.own_group(hours=24 * 7)
    jobs = _jobs(run, orders, out, changes, rows)
    system = open_run(run, ranks.device())
    if not system.drawer.draws:
        raise PromptError(f"{run} can't draw: its image tokenizer came without its decoder")
    if system.slow and ranks.rank() == 0:
        print(f"decoding: {system.slow}", flush=True)
    checkpoint = hashlib.sha256((system.checkpoint / MANIFEST).read_bytes()).hexdigest()
    for job in jobs:
        job.facts["checkpoint"] = checkpoint
    places = ranks.from_first(_placed(jobs, out, geneval) if ranks.rank() == 0 else None)
    began = time.monotonic()
    steps = _draw(system, jobs, places, out, rows)
    ranks.barrier(late)
    new, in_all = ranks.total([float(len(steps)), float(sum(steps))])
    rate = new / max(time.monotonic() - began, 1e-9)
    if ranks.rank() == 0:
        grids = _grids(jobs, places, out, geneval)
        speed = f"; {rate:.2f} images/s, {in_all / new:.1f} steps an image" if new else ""
        print(f"{len(jobs)} pictures in {out}, {len(jobs) - int(new)} of them there already{speed}; "
              f"together: {grids[0]}{f' and {len(grids) - 1} more' if grids[1:] else ''}")


def _draw(system: System, jobs: list[Job], places: list[tuple[Path, bool]], out: Path, rows: int) -> list[int]:
    """Draw this rank's share of what is not there, and write each picture when it is finished; the steps of each."""
    mine = [(job, path) for job, (path, done) in zip(jobs, places) if not done][ranks.rank()::ranks.world()]
    name = f"drawing, rank 0 of {ranks.world()}" if ranks.world() > 1 else "drawing"
    steps, progress = [], metrics.Progress(name, 0, len(mine), "images")
    try:
        wishes = (drawing(asked([load_pixels(file, file) for file in job.order.images], job.order.prompt),
                          job.wish.sampling, job.wish.size, job.seed) for job, _ in mine)
        for number, picture, took in drawn(system, wishes, rows):
            job, path = mine[number]
            write_png(path, picture, job.facts)
            steps.append(took)
            progress.tell(len(steps), "", "images")
    except torch.OutOfMemoryError:
        raise PromptError(f"the GPU has not the memory for --batch {rows}; draw fewer pictures at a time") from None
    finally:
        if 0 < len(steps) < len(mine):
            print(f"\n{len(steps)} of {len(mine)} pictures are in {out}; the same command draws the others", flush=True)
    return steps


def _jobs(run: Path, orders: list[Order], out: Path, changes: Mapping[str, Any], rows: int) -> list[Job]:
    """Every picture, with all refused that can be without weights; checkpoint and shown pictures are still missing."""
    recipe, jobs = recipe_of(run), []
    settings, layout = recipe.sampling.changed(**changes), layout_of(recipe, text_of(recipe, run))
    version = next((d.version for d in distributions(name="unimm")), "")
    if rows < 1:
        raise PromptError(f"--batch is {rows}; draw at least one picture at a time")
    for number, order in enumerate(orders):
        try:
            shown = [load_pixels(file, file) for file in order.images]
            size = codes_of(recipe.layout, order.size, shown)
            own = settings if order.negative is None else replace(settings, negative=order.negative)
            wish = drawing(asked(shown, order.prompt)[-1:], own, size)
            check_prompt(recipe, layout, wish)
        except UserError as error:
            raise PromptError(f"{order.where}: {error}" if order.where else str(error)) from None
        images = (hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in order.images)
        facts = {"prompt": order.prompt, "negative": own.negative, "tag": order.tag, "images": " ".join(images),
                 "size": " ".join(str(n * recipe.layout.pixels_per_code) for n in size),
                 # However many ids are read in a step, the picture is the same.
                 "sampling": json.dumps(asdict(replace(own, window=1))),
                 "recipe": recipe.name, "Software": f"unimm {version}"}
        facts = {name: value for name, value in facts.items() if value}
        jobs += [Job(order, number, seed, wish, facts | {"seed": str(seed)})
                 for seed in range(order.seed, order.seed + order.n)]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise DiskError(f"can't write into {out}; choose another folder with --out")
    return jobs


def _placed(jobs: list[Job], out: Path, geneval: bool) -> list[tuple[Path, bool]]:
    """Each picture's file, and whether it lies there already; no other is written over. GenEval's folders are made."""
    places: list[tuple[Path, bool]] = []
    taken: dict[Path, Job] = {}
    for job in jobs:
        names = (out / f"{job.stem}-{job.seed}{f'-{n}' if n > 1 else ''}.png" for n in count(1))
        if geneval:
            names = [out / f"{job.number:05}" / "samples" / f"{job.seed - job.order.seed:04}.png"]
        for path in names:
            there = taken[path].facts if path in taken else facts_of(path)
            if there is None or all(there.get(name) == job.facts.get(name) for name in SAME):
                break
        else:
            raise PromptError(f"{path} was drawn otherwise; choose another folder with --out, or delete it")
        taken[path] = job
        places.append((path, there is not None))
    for job in jobs if geneval else ():
        folder = out / f"{job.number:05}"
        with writing(folder):
            (folder / "samples").mkdir(parents=True, exist_ok=True)
        if job.seed == job.order.seed:
            replace_file(folder / "metadata.jsonl", job.order.line.encode())
    return places


def _grids(jobs: list[Job], places: list[tuple[Path, bool]], out: Path, geneval: bool) -> list[Path]:
    """Write all pictures side by side above their prompts, in as many files as it takes; GenEval's without words."""
    paths = []
    for number, page in groupby(range(len(jobs)), lambda n: jobs[n].number if geneval else n // PAGE):
        page = list(page)
        more = f"-{number + 1}" if number else ""
        paths.append(out / (f"{number:05}/grid.png" if geneval else f"{jobs[0].stem}{more}-grid.png"))  # none ends so
        labels = None if geneval else [f"{jobs[n].order.prompt} ({jobs[n].seed})" for n in page]
        pictures = [from_png(places[n][0].read_bytes()) for n in page]
        write_png(paths[-1], grid(pictures, labels, columns=min(jobs[page[0]].order.n, 8)))
    return paths
