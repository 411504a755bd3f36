"""Documents and chats in JSON: text and pictures in any order; `unimm continue`.

    {"messages": [{"role": ..., "content": text or parts}, ...]}   a chat; the assistant speaks next, or goes on
    {"parts": [{"type": "text", "text": ...}, {"type": "image", "image": path}, ...]}   a document without speakers
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from unimm.disk import replace_file, writing
from unimm.errors import UserError
from unimm.generate.use import go_on
from unimm.pictures import write_png
from unimm.sample import Image, Part, Text
from unimm.stream.messages import parts_of
from unimm.system import open_run, recipe_of
from unimm.train import ranks


class DocumentError(UserError):
    """A document that can't be read; the message names the file and the remedy."""


def continue_file(run: Path, file: Path, out: Path, images: int, seed: int, changes: Mapping[str, Any]) -> Path:
    """Write the document, continued, as OUT/document.json with all its pictures beside it; returns that path.

    Raises DocumentError, RowError, ImageError, ConfigError before the model is read; DiskError, PromptError.
    """
    settings, parts = recipe_of(run).sampling.changed(**changes), parts_in(file)
    target = out / "document.json"
    if target.exists():
        raise DocumentError(f"{target} is there already; choose another folder with --out, or delete it")
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

    Raises DocumentError, RowError, ImageError.
    """
    where, folder = (str(given), given.parent) if isinstance(given, Path) else ("the document", Path())
    if isinstance(given, Path):
        try:
            given = json.loads(given.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DocumentError(f"{where}: {error.strerror}") from None
        except ValueError as error:
            raise DocumentError(f"{where}: not JSON: {error}") from None
    match given:
        case {"messages": messages}:
            parts = parts_of(messages, given.get("images"), folder)
        case {"parts": content}:
            parts = [replace(p, role=None) for p in parts_of([{"role": "user", "content": content}], None, folder)]
        case _:
            raise DocumentError(f'{where}: neither {{"messages": [...]}} nor {{"parts": [...]}}')
    if not parts:
        raise DocumentError(f"{where}: there is nothing in it to go on from")
    return parts


def document(parts: Sequence[Part], show: Callable[[Image], Any]) -> dict:
    """Parts in the form that `parts_in` reads; `show` says what stands for an image."""
    content = [(part.role, {"type": "text", "text": part.text} if isinstance(part, Text) else
                {"type": "image", "image": show(part)}) for part in parts]
    if parts[0].role is None:
        return {"parts": [said for _, said in content]}
    turns = groupby(content, lambda each: each[0])
    return {"messages": [{"role": role, "content": [said for _, said in turn]} for role, turn in turns]}
