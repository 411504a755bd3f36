"""Colour emoji with their Unicode names: about 1,350 pictures of things people know, and no download.

What it is   every single-code-point emoji that Noto Color Emoji draws and this Python's `unicodedata` names:
             1,357 with the font's version 2.042 and Unicode 14 (Python 3.11). Left out are code points that are
             no picture of their own: keycap digits, skin tones, hair, the letters that flags are spelt with.
Licence      the font is Google's, SIL Open Font License 1.1; the names are Unicode's.
How to get   Debian and Ubuntu: `apt install fonts-noto-color-emoji`; Fedora: `google-noto-color-emoji-fonts`;
             elsewhere put NotoColorEmoji.ttf (the bitmap edition) into a font folder, or name it in $UNIMM_EMOJI_FONT.
As samples   (picture on white, name in lower case), neither marked as learned.
"""

import functools
import io
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unimm.errors import UserError
from unimm.sample import Image as ImagePart
from unimm.sample import Pixels, Sample, Text

FONT_VARIABLE = "UNIMM_EMOJI_FONT"
FONT_FOLDERS = ("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts",
                "~/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts")
STRIKE = 109  # the one size at which the font holds bitmaps, 136 x 128 pixels each
CANVAS = 136
PIECES = ("REGIONAL INDICATOR", "EMOJI MODIFIER", "EMOJI COMPONENT", "COMBINING")
"""Code points that only make a picture together with others: letters of flags, skin tones, hair, keycaps."""


class FontMissing(UserError):
    """Noto Color Emoji isn't on this system, or not in the edition with bitmaps."""


def find_font(folders: tuple[str, ...] = FONT_FOLDERS) -> Path:
    """The font named by $UNIMM_EMOJI_FONT, or the first NotoColorEmoji*.ttf below `folders`.

    Raises FontMissing with the package to install.
    """
    named = os.environ.get(FONT_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise FontMissing(f"{FONT_VARIABLE} names {named}, which is no file")
        return Path(named)
    found = [font for folder in folders for font in sorted(Path(folder).expanduser().rglob("NotoColorEmoji*.ttf"))]
    if not found:
        raise FontMissing("the font Noto Color Emoji is not installed: install the Debian package "
                          f"fonts-noto-color-emoji, or name the font's file in ${FONT_VARIABLE}")
    return found[0]


def emoji(size: int) -> list[tuple[str, np.ndarray]]:
    """(name, uint8 (size, size, 3) on white) of every emoji, in the order of their code points.

    The same font and the same Unicode version give the same list. Raises FontMissing.
    """
    return list(_drawn(find_font(), size))


def pairs(size: int) -> Iterator[Sample]:
    """Each emoji as a Sample of its picture and its name. Raises FontMissing."""
    for name, picture in emoji(size):
        yield Sample((ImagePart(Pixels(picture)), Text(name)))


def nearest(pictures: np.ndarray) -> np.ndarray:
    """Index in `emoji(size)` of the emoji nearest to each picture, by squared distance of pixels.

    pictures uint8 (N, size, size, 3) -> int64 (N,). Raises FontMissing.
    """
    known = np.stack([picture for _, picture in emoji(pictures.shape[1])])
    known = known.reshape(len(known), -1).astype(np.float32)  # (M, D)
    given = pictures.reshape(len(pictures), -1).astype(np.float32)  # (N, D)
    # |g - k|^2 without |g|^2, which is the same for every k
    return ((known**2).sum(1) - 2 * given @ known.T).argmin(1)  # (N, M) -> (N,)


@functools.lru_cache(maxsize=4)
def _drawn(path: Path, size: int) -> tuple[tuple[str, np.ndarray], ...]:
    drawn = []
    for name, picture in _glyphs(path):
        pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        pixels.flags.writeable = False  # the cache shares it with every caller
        drawn.append((name, pixels))
    return tuple(drawn)


@functools.lru_cache(maxsize=1)
def _glyphs(path: Path) -> tuple[tuple[str, Image.Image], ...]:
    """(name, RGB picture of 136 x 136) of every emoji."""
    try:
        # bytes, for Pillow answers a broken file with another of its name; basic layout, for whether
        # Pillow was built with Raqm must not change a picture
        font = ImageFont.truetype(io.BytesIO(path.read_bytes()), STRIKE, layout_engine=ImageFont.Layout.BASIC)
    except OSError as why:
        raise FontMissing(f"{path} has no bitmaps of size {STRIKE}: use the CBDT edition of "
                          f"Noto Color Emoji, the one of Debian's fonts-noto-color-emoji ({why})") from why
    return tuple((unicodedata.name(char).lower(), _draw(char, font)) for char in map(chr, range(0x80, 0x20000))
                 if _is_picture(char) and _is_drawn(char, font))


def _is_picture(char: str) -> bool:
    name = unicodedata.name(char, "")
    return name != "" and not name.startswith(PIECES)


def _is_drawn(char: str, font: ImageFont.FreeTypeFont) -> bool:
    _, top, _, bottom = font.getbbox(char)
    return bottom > top


def _draw(char: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
    ImageDraw.Draw(canvas).text((0, (CANVAS - 128) // 2), char, font=font, embedded_color=True)
    return canvas
