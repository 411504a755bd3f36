"""The ecosystem's chat form as parts: [{"role": ..., "content": text or [{"type": "text" | "image", ...}]}]."""

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from unimm.errors import UserError
from unimm.sample import Image, Part, Pixels, Text
from unimm.stream.pixels import load_pixels
from unimm.turns import ROLES


class RowError(UserError):
    """Messages, or a row of a dataset, that make no sample; in a dataset it becomes the problem of its Item."""


def parts_of(messages: Any, images: Any, folder: Path) -> list[Part]:
    """Messages as parts, what the assistant says or draws marked as learned; image paths are relative to `folder`.

    A part {"type": "image"} without an image of its own takes the next of `images`. Raises RowError, ImageError.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RowError("messages must be a list of {role, content}")
    waiting, parts, before = list(images or []), [], None
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RowError(f"role {role!r} must be one of: {', '.join(ROLES)}")
        if role == before:
            raise RowError(f"two messages of {role!r} in a row; join them")
        before, learn = role, role == "assistant"
        if not isinstance(content, str | list):
            raise RowError(f"content must be a text or a list of parts, got {content!r:.60}")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            match part:
                case {"type": "text", "text": ""}:
                    pass
                case {"type": "text", "text": text}:
                    parts.append(Text(text_of(text), learn, role))
                case {"type": "image"}:
                    own = part.get("image")  # maybe an array, which is neither true nor false
                    image = own if own is not None else part.get("path") or (waiting.pop(0) if waiting else None)
                    parts.append(Image(Pixels(pixels_of(image, folder)), learn, role))
                case _:
                    raise RowError('a part must be {"type": "text", ...} or {"type": "image", ...}, '
                                   f"got {part!r:.60}")
    if waiting:
        raise RowError(f'{len(waiting)} images have no place; mark each with a part {{"type": "image"}}')
    return parts


def text_of(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"its text must be a text with something in it, got {value!r:.60}")
    return value


def pixels_of(image: Any, folder: Path) -> np.ndarray:
    """uint8 (H, W, 3) of an array, a Pillow image, a path, bytes, or datasets' {"bytes", "path"}; bytes in JSON are
    base64."""
    name = image.get("path") if isinstance(image, dict) else None
    match image:
        case np.ndarray():
            return Pixels(image).array
        case {"bytes": bytes(data)} | bytes(data) | (PIL.Image.Image() as data):
            return load_pixels(data, name or "its image")
        case {"bytes": str(data)}:
            try:
                return load_pixels(base64.b64decode(data, validate=True), name or "its image")
            except binascii.Error as why:
                raise RowError(f"its image's bytes are not base64: {why}") from why
        case str(path) | {"path": str(path)} | (Path() as path) if path:
            if "://" in str(path):
                raise RowError(f"{path} is an address; images are read from files, so download it first")
            return load_pixels(folder / path, str(path))
        case _:
            raise RowError(f"its image must be a path or bytes, got {image!r:.60}")
