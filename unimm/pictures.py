"""Pictures as arrays, uint8 (H, W, 3): to other sizes, and as files and grids that a person looks at.

Sizes are (rows, columns). What a release does before its tokenizer is one of these resizings, chosen in
`unimm.images.prepare`. Files say how they were drawn, and are written whole or not at all.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from unimm.disk import replace_file

LINES, MOST = 6, 512
"""The most lines of a label, and pixels of a side, in a grid."""


def enlarged(image: np.ndarray, least: int = 128) -> np.ndarray:
    """uint8 (H, W, 3) repeated pixel by pixel until its shorter side has at least `least` pixels."""
    times = max(1, -(-least // min(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def grid(images: list[np.ndarray], labels: list[str] | None = None, columns: int = 8) -> np.ndarray:
    """One uint8 picture of images in rows of `columns`, each above its label if there are labels; large ones shrunk."""
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
    data, chunks = io.BytesIO(), PngInfo()
    for name, value in (facts or {}).items():
        chunks.add_text(name, value)
    Image.fromarray(image).save(data, "png", optimize=optimize, pnginfo=chunks)
    return data.getvalue()


def facts_of(path: Path) -> dict[str, str] | None:
    """What a PNG says of itself; None where there is no such file, or no whole one."""
    try:
        with Image.open(path, formats=("png",)) as image:
            facts = {name: str(value) for name, value in image.info.items() if isinstance(value, str)}
            image.verify()  # reads every chunk against its checksum
    except (OSError, SyntaxError, ValueError):  # by which Pillow says missing, cut short, damaged
        return None
    return facts


def from_png(data: bytes) -> np.ndarray:
    """The inverse of `to_png`."""
    return np.array(Image.open(io.BytesIO(data), formats=("png",)).convert("RGB"))


def resized(array: np.ndarray, size: tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """The whole picture at another size; the same array where it has that size."""
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    return np.array(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling[filter.upper()]))


def centre(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of this size in the middle, a view."""
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top:top + height, left:left + width]


def fit(array: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square, resized to (size, size, 3)."""
    side = min(array.shape[:2])
    return resized(centre(array, side, side), (size, size))


def cropped(array: np.ndarray, size: tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """Resized until it just covers `size`, then its centre: beside `fit`, the other order of the two steps."""
    height, width = array.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    covering = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    return np.ascontiguousarray(centre(resized(array, covering, filter), *size))


def padded(array: np.ndarray, side: int, colour: tuple[int, int, int]) -> np.ndarray:
    """The whole picture in a square: its long side resized to `side`, the rest of the square one colour.

    How Janus (127, 127, 127) and Liquid (122, 116, 104) show a picture to be understood.
    """
    height, width = (max(1, round(n * side / max(array.shape[:2]))) for n in array.shape[:2])
    square = np.full((side, side, 3), colour, np.uint8)
    centre(square, height, width)[:] = resized(array, (height, width))
    return square


def size_of_area(height: int, width: int, area: int, factor: int) -> tuple[int, int]:
    """The size of about `area` pixels and the same shape, to the nearest multiples of `factor`, at least one.

    Emu3.5's rule (baaivision/Emu3.5, src/utils/input_utils.py, smart_resize).
    """
    ratio = width / height
    rows = int((area / ratio) ** 0.5)
    columns = int(rows * ratio)
    return tuple(max(factor, (n + factor // 2) // factor * factor) for n in (rows, columns))


def size_within(height: int, width: int, pixels: tuple[int, int], factor: int) -> tuple[int, int]:
    """The nearest multiples of `factor` whose product lies within `pixels`, shrunk or grown in shape where it doesn't.

    Emu3's rule (BAAI/Emu3-VisionTokenizer, image_processing_emu3visionvq.py; also transformers' Emu3ImageProcessor).
    """
    least, most = pixels
    rows, columns = (round(n / factor) * factor for n in (height, width))
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        return tuple(max(factor, math.floor(n / shrink / factor) * factor) for n in (height, width))
    if rows * columns < least:
        grow = math.sqrt(least / (height * width))
        return tuple(math.ceil(n * grow / factor) * factor for n in (height, width))
    return rows, columns


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of `sizes`, the one that shows the largest share of the picture; of equals the largest.

    Lumina-mGPT's rule (Alpha-VLLM/Lumina-mGPT, data/item_processor.py, var_center_crop), without its chance.
    """
    def share(size: tuple[int, int]) -> tuple[float, int]:
        scales = size[0] / height, size[1] / width
        return round(min(scales) / max(scales), 9), size[0] * size[1]

    return max(sizes, key=share)
