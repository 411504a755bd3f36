"""Words as pictures: short words in several sizes, and a reader of what came back of them.

    word, size --render--> picture --a tokenizer, and back--> picture --read--> the word it is nearest to

After TokBench (Wu et al. 2025, arXiv:2505.18142), which asks of a tokenizer whether text can still be read in what it
gives back, by size of the letters. Its reader is a recogniser of text; here the words are few and known, so that the
nearest of their renderings, by the correlation of brightness, reads them without a network: an original is always
read right. White on black, in the font that Pillow brings; no files, no licence of their own.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = ("act air arm bad bag bed big box boy bus cap car cat cow cup cut day dog dot ear eat egg eye far fig fit fly "
         "fox fun gas got gun hat hen hot ice ink jam jar key").split()
"""Three letters, of which some differ in one place alone."""
SIZES = (8, 10, 12, 14)
"""Of the font in pixels, in a picture of 32 x 32; in larger pictures in proportion."""


@cache
def render(word: str, size: int, side: int = 32) -> np.ndarray:
    """The word in the middle of a square: uint8 (side, side, 3); its font has `size` pixels at a side of 32."""
    picture = Image.new("L", (side, side))
    font = ImageFont.load_default(size * side / 32)
    ImageDraw.Draw(picture).text((side / 2, side / 2), word, fill=255, font=font, anchor="mm")
    return np.asarray(picture)[:, :, None].repeat(3, 2)


def read(pictures: list[np.ndarray], size: int) -> list[str]:
    """The word that each picture, uint8 (side, side, 3), is nearest to in this size."""
    known = _directions([render(word, size, len(pictures[0])) for word in WORDS])
    return [WORDS[n] for n in (_directions(pictures) @ known.T).argmax(1)]


def _directions(pictures: list[np.ndarray]) -> np.ndarray:
    """Brightness without its mean, of length 1: float64 (N, side * side); 0 where all pixels are alike."""
    light = np.stack(pictures).mean(3).reshape(len(pictures), -1)
    light = light - light.mean(1, keepdims=True)
    return light / np.maximum(np.linalg.norm(light, axis=1, keepdims=True), 1e-9)
