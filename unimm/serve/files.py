"""`unimm sample` and `unimm edit`: pictures as files that say how they were drawn, by any number of processes.

    orders --checked--> jobs, without those already drawn --shared among ranks--> PNGs --> labelled grids

A picture is taken for drawn where a whole PNG says that it is of the same prompt, seed, settings and checkpoint.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from itertools import count, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unimm.checkpoint.folders import MANIFEST
from unimm.disk import DiskError, replace_file, writing
from unimm.errors import UserError
from unimm.generate.request import Request, drawing
from unimm.generate.use import PromptError, asked, check_prompt, drawn
from unimm.pictures import facts_of, from_png, grid, write_png
from unimm.serve.prompts import Order, codes_of
from unimm.stream.pixels import load_pixels
from unimm.system import System, layout_of, open_run, recipe_of, text_of
from unimm.train import ranks
from unimm.train.metrics import Progress

Form = Literal["files", "geneval"]
Place = tuple[Path, bool]
"""A picture's file, and whether it lies there already."""

SAME = ("prompt", "seed", "size", "images", "sampling", "checkpoint")
"""What makes a picture: two that agree in it are one."""
PAGE = 64
"""The most pictures of one grid."""


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
                  form: Form = "files") -> None:
    """Draw every order, `rows` pictures at a time, each rank its share; rank 0 ends with grids and a summary.

    `changes` are flat changes of the run's own sampling settings, see `Sampling.changed`.

    Raises OrderError, PromptError, ImageError, ConfigError before weights are read, and DiskError; PromptError where
    a GenEval folder holds pictures that were drawn otherwise.
    """
    ranks.start()
    late = ranks.own_group(hours=24 * 7)
    wishes = _checked(run, orders, out, changes, rows)
    system = open_run(run, ranks.device())
    if not system.drawer.draws:
        raise PromptError(f"{run} can't draw: its image tokenizer came without its decoder")
    if system.slow and ranks.rank() == 0:
        print(f"decoding: {system.slow}", flush=True)
    jobs = list(_jobs(system, orders, wishes))
    places = ranks.from_first(_placed(jobs, out, form) if ranks.rank() == 0 else None)
    began = time.monotonic()
    steps = _draw(system, jobs, places, out, rows)
    ranks.barrier(late)
    new, in_all = ranks.total([float(len(steps)), float(sum(steps))])
    rate = new / max(time.monotonic() - began, 1e-9)
    if ranks.rank() == 0:
        grids = _grids(jobs, places, out, form)
        speed = f"; {rate:.2f} images/s, {in_all / new:.1f} steps an image" if new else ""
        print(f"{len(jobs)} pictures in {out}, {len(jobs) - int(new)} of them there already{speed}; "
              f"together: {grids[0]}{f' and {len(grids) - 1} more' if grids[1:] else ''}")


def _draw(system: System, jobs: list[Job], places: list[Place], out: Path, rows: int) -> list[int]:
    """Draw this rank's share of what is not there, and write each picture when it is finished; the steps of each."""
    steps: list[int] = []
    mine = [(job, path) for job, (path, done) in zip(jobs, places) if not done][ranks.rank()::ranks.world()]
    name = f"drawing{f', rank 0 of {ranks.world()}' if ranks.world() > 1 else ''}"
    progress = Progress(name, 0, len(mine), "images")
    try:
        wishes = (drawing(asked(_shown(job.order), job.order.prompt), job.wish.sampling, job.wish.size, job.seed)
                  for job, _ in mine)
        for number, picture, took in drawn(system, wishes, rows):
            job, path = mine[number]
            write_png(path, picture, job.facts)
            steps.append(took)
            if ranks.rank() == 0:
                progress.tell(len(steps), "", "images")
    except torch.OutOfMemoryError:
        raise PromptError(f"the GPU has not the memory for --batch {rows}; draw fewer pictures at a time") from None
    finally:
        if 0 < len(steps) < len(mine):
            print(f"\n{len(steps)} of {len(mine)} pictures are in {out}; the same command draws the others", flush=True)
    return steps


def _checked(run: Path, orders: list[Order], out: Path, changes: Mapping[str, Any], rows: int) -> list[Request]:
    """Every order's wish, but for its pictures, with all refused that can be without weights."""
    recipe, wishes = recipe_of(run), []
    settings, layout = recipe.sampling.changed(**changes), layout_of(recipe, text_of(recipe, run))
    if rows < 1:
        raise PromptError(f"--batch is {rows}; draw at least one picture at a time")
    for order in orders:
        try:
            shown = _shown(order)
            size = codes_of(recipe.layout, order.size, shown)
            own = settings if order.negative is None else replace(settings, negative=order.negative)
            wishes.append(drawing(asked(shown, order.prompt)[-1:], own, size))
            check_prompt(recipe, layout, wishes[-1])
        except UserError as error:
            raise PromptError(f"{order.where}: {error}" if order.where else str(error)) from None
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise DiskError(f"can't write into {out}; choose another folder with --out")
    return wishes


def _shown(order: Order) -> list[np.ndarray]:
    return [load_pixels(file, file) for file in order.images]


def _jobs(system: System, orders: list[Order], wishes: list[Request]) -> Iterator[Job]:
    side, version = system.recipe.layout.pixels_per_code, next((d.version for d in distributions(name="unimm")), "")
    made_by = {"recipe": system.recipe.name, "checkpoint": _hash(system.checkpoint / MANIFEST),
               "Software": f"unimm {version}"}
    for number, (order, wish) in enumerate(zip(orders, wishes, strict=True)):
        images = [_hash(Path(file)) for file in order.images]
        about = {"prompt": order.prompt, "negative": wish.sampling.negative, "tag": order.tag,
                 "images": " ".join(images), "size": f"{wish.size[0] * side} {wish.size[1] * side}",
                 # However many ids are read in a step, the picture is the same.
                 "sampling": json.dumps(asdict(replace(wish.sampling, window=1)))}
        said = {name: value for name, value in (about | made_by).items() if value}
        for seed in range(order.seed, order.seed + order.n):
            yield Job(order, number, seed, wish, said | {"seed": str(seed)})


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _placed(jobs: list[Job], out: Path, form: Form) -> list[Place]:
    """Where each picture goes; no other picture is ever written over. GenEval's folders are made."""
    places: list[Place] = []
    taken: dict[Path, Job] = {}
    for job in jobs:
        for path in _names(job, out, form):
            there = taken[path].facts if path in taken else facts_of(path)
            if there is None or all(there.get(name) == job.facts.get(name) for name in SAME):
                break
        else:
            raise PromptError(f"{path} was drawn otherwise; choose another folder with --out, or delete it")
        taken[path] = job
        places.append((path, there is not None))
    for job in jobs if form == "geneval" else ():
        folder = out / f"{job.number:05}"
        with writing(folder):
            (folder / "samples").mkdir(parents=True, exist_ok=True)
        if job.seed == job.order.seed:
            replace_file(folder / "metadata.jsonl", job.order.line.encode())
    return places


def _names(job: Job, out: Path, form: Form) -> Iterator[Path]:
    if form == "geneval":
        yield out / f"{job.number:05}" / "samples" / f"{job.seed - job.order.seed:04}.png"
    else:
        yield from (out / f"{job.stem}-{job.seed}{f'-{n}' if n > 1 else ''}.png" for n in count(1))


def _grids(jobs: list[Job], places: list[Place], out: Path, form: Form) -> list[Path]:
    """Write all pictures side by side above their prompts, in as many files as it takes; GenEval's without words."""
    if form == "geneval":
        pages = [list(page) for _, page in groupby(range(len(jobs)), lambda n: jobs[n].number)]
        paths = [out / f"{number:05}" / "grid.png" for number in range(len(pages))]
    else:  # no picture's name ends so
        pages = [range(len(jobs))[at:at + PAGE] for at in range(0, len(jobs), PAGE)]
        paths = [out / f"{jobs[0].stem}{f'-{n + 1}' if n else ''}-grid.png" for n in range(len(pages))]
    for path, page in zip(paths, pages):
        labels = [f"{jobs[n].order.prompt} ({jobs[n].seed})" for n in page] if form == "files" else None
        pictures = [from_png(places[n][0].read_bytes()) for n in page]
        write_png(path, grid(pictures, labels, columns=min(jobs[page[0]].order.n, 8)))
    return paths
