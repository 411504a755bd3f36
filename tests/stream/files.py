"""Small files of every kind that a source reads."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image as Picture

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def block(colour: str) -> np.ndarray:
    return np.full((8, 8, 3), COLOURS[colour], np.uint8)


def file_of(colour: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Picture.fromarray(block(colour)).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def write(file: Path, content: bytes | str | list) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    match content:
        case bytes():
            file.write_bytes(content)
        case str():
            file.write_text(content, encoding="utf-8")
        case list():
            write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    return file


def tar(file: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file
