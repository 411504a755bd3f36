"""Pictures a person looks at: files that say how they were drawn, grids with labels; whole or not at all."""

import io
import textwrap
from pathlib import Path

import numpy as np

from unimm.disk import replace_file

LINES, MOST = 6, 512
"""The most lines of a label, and pixels of a side, in a grid."""


def enlarged(image: np.ndarray, least: int = 128) -> np.ndarray:
    """uint8 (H, W, 3) repeated pixel by pixel until its shorter side has at least `least` pixels."""
    times = max(1, -(-least // min(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def grid(images: list[np.ndarray], labels: list[str] | None = None, columns: int = 8) -> np.ndarray:
    """One uint8 picture of images in rows of `columns`, each above its label if there are labels; large ones shrunk."""
    from PIL import Image, ImageDraw, ImageFont

    cells = [Image.fromarray(enlarged(image)) for image in images]
    for cell in cells:
        cell.thumbnail((MOST, MOST))
    w, h = (max(cell.size[side] for cell in cells) for side in (0, 1))
    gap, columns = 8, min(columns, len(images))
    font = ImageFont.load_default(12)
    line, letters = 15, int(w / font.getlength("n"))
    texts = [textwrap.wrap(label, letters, max_lines=LINES) for label in labels or [""] * len(images)]
    height = h + gap + line * max(map(len, texts))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (gap + columns * (w + gap), gap + rows * (height + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for n, (cell, text) in enumerate(zip(cells, texts)):
        x, y = gap + n % columns * (w + gap), gap + n // columns * (height + gap)
        canvas.paste(cell, (x, y))
        for k, words in enumerate(text):
            pen.text((x, y + h + 3 + k * line), words, fill="#333333", font=font)
    return np.asarray(canvas)


def write_png(path: Path, image: np.ndarray, facts: dict[str, str] | None = None) -> None:
    """Write uint8 (H, W, 3) aside, then rename."""
    replace_file(path, to_png(image, facts=facts))


def to_png(image: np.ndarray, optimize: bool = False, facts: dict[str, str] | None = None) -> bytes:
    """uint8 (H, W, 3) as a file's bytes, lossless; `optimize` takes time to make it smaller. `facts` become its text
    chunks, which any viewer of metadata shows."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    data, chunks = io.BytesIO(), PngInfo()
    for name, value in (facts or {}).items():
        chunks.add_text(name, value)
    Image.fromarray(image).save(data, "png", optimize=optimize, pnginfo=chunks)
    return data.getvalue()


def facts_of(path: Path) -> dict[str, str] | None:
    """What a PNG says of itself; None where there is no such file, or no whole one."""
    from PIL import Image

    try:
        with Image.open(path, formats=("png",)) as image:
            facts = {name: str(value) for name, value in image.info.items() if isinstance(value, str)}
            image.verify()  # reads every chunk against its checksum
    except (OSError, SyntaxError, ValueError):  # by which Pillow says missing, cut short, damaged
        return None
    return facts


def from_png(data: bytes) -> np.ndarray:
    """The inverse of `to_png`."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data), formats=("png",)).convert("RGB"))
