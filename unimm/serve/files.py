"""`unimm sample`: prompts in, a labelled grid and single PNGs out."""

import re
from pathlib import Path

from unimm.generate.use import PromptError, draw
from unimm.pictures import grid, write_png
from unimm.sample import Text
from unimm.system import open_run


def sample_to_files(run: Path, prompts: tuple[str, ...], n: int, seed: int, out: Path | None,
                    changes: dict[str, float | str]) -> Path:
    """Draw every prompt `n` times (seeds `seed`, `seed` + 1, ...) and write the pictures; returns the grid's path.

    `changes` are flat changes of the run's own sampling settings, see `Sampling.changed`.

    Raises PromptError where there is nothing to draw, OSError where the folder can't be written.
    """
    if not prompts or not all(p.strip() for p in prompts):
        raise PromptError('no prompt; say what to draw, such as: unimm sample RUN "a red circle"')
    if n < 1:
        raise PromptError(f"-n is {n}; ask for at least one picture")
    out = out or run / "samples"
    out.mkdir(parents=True, exist_ok=True)  # before minutes of drawing, not after
    system = open_run(run)
    labels = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + k for _ in prompts for k in range(n)]
    pictures = draw(system, [[Text(label)] for label in labels], seeds, system.recipe.sampling.changed(**changes))
    for label, number, picture in zip(labels, seeds, pictures):
        write_png(out / f"{file_name(label)}-{number}.png", picture)
    path = out / f"{file_name(prompts[0])}-grid.png"
    write_png(path, grid(pictures, [f"{label} ({number})" for label, number in zip(labels, seeds)], columns=min(n, 8)))
    print(f"{len(pictures)} pictures in {out}, all of them in {path}")
    return path


def file_name(prompt: str) -> str:
    """A prompt as a file's name: words joined by dashes, nothing a file system minds."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
