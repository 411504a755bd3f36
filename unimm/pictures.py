"""Pictures a person looks at: grids with labels, written whole or not at all."""

import io
from pathlib import Path

import numpy as np

from unimm.disk import replace_file


def enlarged(image: np.ndarray, least: int = 128) -> np.ndarray:
    """uint8 (H, W, 3) repeated pixel by pixel until its shorter side has at least `least` pixels."""
    times = max(1, -(-least // min(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def grid(images: list[np.ndarray], labels: list[str] | None = None, columns: int = 8) -> np.ndarray:
    """One uint8 picture of equally sized images in rows of `columns`, each above its label if there are labels."""
    from PIL import Image, ImageDraw, ImageFont

    images = [enlarged(image) for image in images]
    h, w = images[0].shape[:2]
    gap, columns = 8, min(columns, len(images))
    font = ImageFont.load_default(12)
    texts = [_wrapped(label, font, w) for label in labels] if labels else [[]] * len(images)
    line = 15
    height = h + gap + line * max(len(t) for t in texts)
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (gap + columns * (w + gap), gap + rows * (height + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for n, (image, text) in enumerate(zip(images, texts)):
        x, y = gap + n % columns * (w + gap), gap + n // columns * (height + gap)
        canvas.paste(Image.fromarray(image), (x, y))
        for k, words in enumerate(text):
            pen.text((x, y + h + 3 + k * line), words, fill="#333333", font=font)
    return np.asarray(canvas)


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def write_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) aside, then rename."""
    replace_file(path, to_png(image))


def to_png(image: np.ndarray, optimize: bool = False) -> bytes:
    """uint8 (H, W, 3) as a file's bytes, lossless; `optimize` takes time to make it smaller."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "png", optimize=optimize)
    return data.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """The inverse of `to_png`."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data), formats=("png",)).convert("RGB"))
