"""`unimm chat`: a conversation in the terminal. Paths of images in what is said are read; pictures are written."""

import shlex
from pathlib import Path

from unimm.errors import UserError
from unimm.generate.use import reply
from unimm.pictures import enlarged, write_png
from unimm.sample import Image, Part, Pixels, Text
from unimm.stream.pixels import load_pixels
from unimm.system import System, open_run
from unimm.train import ranks

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

HELP = """Say something; name an image file to show it (drag one in), such as: cat.png what is this?
/new starts over, /quit (or Ctrl-D) ends."""


def parts_said(line: str) -> list[Part]:
    """A line of chat as parts: words that end like image files are images, the rest is text.

    Raises ImageError for a file that is missing or no image.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an apostrophe is no quotation
        words = line.split()
    files = [w for w in words if w.lower().endswith(ENDINGS)]
    images: list[Part] = [Image(Pixels(load_pixels(w, w)), role="user") for w in files]
    if files:
        line = " ".join(w for w in words if w not in files)
    return images + ([Text(line.strip(), role="user")] if line.strip() else [])


def chat_in_terminal(run: Path, seed: int, out: Path | None) -> None:
    """Talk until the end of input. A refused line is answered by its reason and leaves the conversation as it was."""
    system = open_run(run, ranks.device())
    out = out or run / "chat"
    out.mkdir(parents=True, exist_ok=True)
    print(f"{system.recipe.name}: {system.checkpoint}\n{HELP}")
    history: list[Part] = []
    while (line := _read()) != "/quit":
        try:
            if line == "/new":
                history = []
                print("a new conversation")
            elif line:
                history = _answered(system, history + parts_said(line), seed, out)
        except UserError as error:
            print(f"({error})")


def _read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return "/quit"


def _answered(system: System, parts: list[Part], seed: int, out: Path) -> list[Part]:
    """Print the assistant's turn; the conversation with it."""
    said = reply(system, parts, seed=seed)
    for part in said:
        match part:
            case Text(text=text):
                print(text.strip())
            case Image(content=Pixels(array=array)):
                path = next(p for n in range(10**6) if not (p := out / f"picture-{n:03d}.png").exists())
                write_png(path, enlarged(array, 256))
                print(f"[picture: {path}]")
    if not said:
        print("(nothing)")
    return parts + said
