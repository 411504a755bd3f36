"""Text and pictures in any order: documents and chats in JSON, `unimm continue`; a chat in the terminal, `unimm chat`.

    {"messages": [{"role": ..., "content": text or parts}, ...]}   a chat; the assistant speaks next, or goes on
    {"parts": [{"type": "text", "text": ...}, {"type": "image", "image": path}, ...]}   a document without speakers
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from unimm.disk import replace_file, writing
from unimm.errors import UserError
from unimm.generate.use import PromptError, go_on
from unimm.pictures import enlarged, write_png
from unimm.sample import Image, Part, Pixels, Text
from unimm.stream.messages import parts_of
from unimm.stream.pixels import load_pixels
from unimm.system import System, open_run, recipe_of
from unimm.train import ranks

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

HELP = """Say something; name an image file to show it (drag one in), such as: cat.png what is this?
/new starts over, /quit (or Ctrl-D) ends."""


def continue_file(run: Path, file: Path, out: Path, images: int, seed: int, changes: Mapping[str, Any]) -> Path:
    """Write the document, continued, as OUT/document.json with all its pictures beside it; returns that path.

    Raises PromptError, RowError, ImageError, ConfigError before the model is read; DiskError.
    """
    settings, parts = recipe_of(run).sampling.changed(**changes), parts_in(file)
    target = out / "document.json"
    if target.exists():
        raise PromptError(f"{target} is there already; choose another folder with --out, or delete it")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = go_on(open_run(run, ranks.device()), parts, settings, seed, images)
    names: list[str] = []

    def beside(image: Image) -> str:
        names.append(f"image-{len(names):03}.png")
        write_png(out / names[-1], image.content.array)
        return names[-1]

    replace_file(target, json.dumps(document([*parts, *written], beside), indent=1, ensure_ascii=False).encode())
    return target


def parts_in(given: dict | Path) -> list[Part]:
    """The parts of a document or a chat, or of a file that holds one; image paths are relative to that.

    Raises PromptError, RowError, ImageError.
    """
    where, folder = (str(given), given.parent) if isinstance(given, Path) else ("the document", Path())
    if isinstance(given, Path):
        try:
            given = json.loads(given.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
            raise PromptError(f"{where}: {why}") from None
    match given:
        case {"messages": messages}:
            parts = parts_of(messages, given.get("images"), folder)
        case {"parts": content}:
            parts = [replace(p, role=None) for p in parts_of([{"role": "user", "content": content}], None, folder)]
        case _:
            raise PromptError(f'{where}: neither {{"messages": [...]}} nor {{"parts": [...]}}')
    if not parts:
        raise PromptError(f"{where}: there is nothing in it to go on from")
    return parts


def document(parts: Sequence[Part], show: Callable[[Image], Any] = attrgetter("content.array")) -> dict:
    """Parts in the form that `parts_in` reads; `show` says what stands for an image: its pixels, or their file."""
    content = [(part.role, {"type": "text", "text": part.text} if isinstance(part, Text) else
                {"type": "image", "image": show(part)}) for part in parts]
    if parts[0].role is None:
        return {"parts": [said for _, said in content]}
    turns = groupby(content, lambda each: each[0])
    return {"messages": [{"role": role, "content": [said for _, said in turn]} for role, turn in turns]}


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
    said = (" ".join(w for w in words if w not in files) if files else line).strip()
    return images + ([Text(said, role="user")] if said else [])


def chat_in_terminal(run: Path, seed: int, out: Path | None) -> None:
    """Talk until the end of input. A refused line is answered by its reason and leaves the conversation as it was."""
    system = open_run(run, ranks.device())
    out = out or run / "chat"
    out.mkdir(parents=True, exist_ok=True)
    print(f"{system.recipe.name}: {system.checkpoint}\n{HELP}")
    history: list[Part] = []
    while True:
        try:
            line = input("> ").strip()
            if line == "/quit":
                return
            if line == "/new":
                history = []
                print("a new conversation")
            elif line:
                history = _answered(system, history + parts_said(line), seed, out)
        except UserError as error:
            print(f"({error})")
        except EOFError:
            print()
            return


def _answered(system: System, parts: list[Part], seed: int, out: Path) -> list[Part]:
    """Print the assistant's turn; the conversation with it."""
    said = go_on(system, parts, seed=seed, images=1, text=False)
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
