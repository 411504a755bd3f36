"""Image files as numbers: whatever Pillow opens becomes uint8 (height, width, 3) RGB, or is refused with one line.

    file, bytes or picture --open--> size checked --decode--> 8 bits a channel --> upright --> on white --> RGB

Refused: what is cut short or damaged, what would need too much memory, and what is no picture. A page of an
animation or of a TIFF is the first. Colour profiles are ignored and CMYK is converted without one.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from unimm.errors import UserError

MAX_PIXELS = 2**26
"""Largest picture: 67 million pixels, 200 MB as RGB. Checked on the header: a 0.5 MB PNG of
13,000 x 13,000 otherwise costs 1.3 GB and 9 s, which Pillow's own limit lets pass."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
"""What is opened. Not EPS, for which Pillow starts Ghostscript on the file: data is not to be run."""


class ImageError(UserError):
    """An image that can't be used; the message says which and why in one line."""


def load_pixels(source: str | Path | bytes | Image.Image, where: str) -> np.ndarray:
    """uint8 (height, width, 3) of a file, of a file's bytes or of a Pillow image.

    `where` names the image in messages. Raises ImageError(f"{where}: why"), and nothing else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes Pillow finds suspicious; the limit here is lower
            image = source if isinstance(source, Image.Image) else _open(source)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels; make it smaller")
            # Tracking pixels and spacers of web pages: their square is one colour, and a caption beside
            # it would teach that words mean nothing.
            if min(width, height) < 2:
                raise ImageError(f"{width} x {height} pixels shows nothing but one colour")
            return _decode(image)
    except ImageError as why:
        raise ImageError(f"{where}: {why}") from why
    # Decoders meet damage with OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    # IndexError, ... A picture is data: whatever it makes a decoder do, the run goes on without it.
    except Exception as why:
        text = " ".join(str(why).split()) or type(why).__name__
        raise ImageError(f"{where}: damaged or cut short ({text})") from why


def _open(source: str | Path | bytes) -> Image.Image:
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as why:
        raise ImageError(f"can't be read from {source}: {why.strerror}") from why
    if not data:
        raise ImageError("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as why:
        raise ImageError("not an image, or of an unknown format, or cut short") from why
    except Image.DecompressionBombError as why:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels, too large to decode safely") from why


def _decode(image: Image.Image) -> np.ndarray:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries set it, and half a picture is grey
    image.load()
    # 16-bit grey is scaled to 8 bits here, for Pillow's own conversion clips everything above 255 to white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # which Pillow scales to 16 bits
        grey, exif = np.asarray(image).astype(np.uint32), image.getexif()
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257
        image.info["exif"] = exif.tobytes() if exif else b""
    elif image.mode in ("I", "F"):
        raise ImageError(f"{image.mode} pixels (32 bits) have no known range; save it with 8 or 16 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
