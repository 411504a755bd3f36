"""Pictures as arrays to other sizes: uint8 (H, W, 3) in and out, with antialiasing. Sizes are (rows, columns).

What a release does before its tokenizer is one of these, chosen in `unimm.images.prepare`.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


def resized(array: np.ndarray, size: tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """The whole picture at another size; the same array where it has that size."""
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    return np.array(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling[filter.upper()]))


def fit(array: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square, resized to (size, size, 3)."""
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(array[top:top + side, left:left + side], (size, size))


def cropped(array: np.ndarray, size: tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """Resized until it just covers `size`, then its centre: beside `fit`, the other order of the two steps."""
    height, width = array.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    covering = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    array = resized(array, covering, filter)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return np.ascontiguousarray(array[top:top + size[0], left:left + size[1]])


def padded(array: np.ndarray, side: int, colour: tuple[int, int, int]) -> np.ndarray:
    """The whole picture in a square: its long side resized to `side`, the rest of the square one colour.

    How Janus (127, 127, 127) and Liquid (122, 116, 104) show a picture to be understood.
    """
    height, width = (max(1, round(n * side / max(array.shape[:2]))) for n in array.shape[:2])
    square = np.full((side, side, 3), colour, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top:top + height, left:left + width] = resized(array, (height, width))
    return square


def size_of_area(height: int, width: int, area: int, factor: int) -> tuple[int, int]:
    """The size of about `area` pixels and the same shape, to the nearest multiples of `factor`, at least one.

    Emu3.5's rule (baaivision/Emu3.5, src/utils/input_utils.py, smart_resize).
    """
    ratio = width / height
    rows = int((area / ratio) ** 0.5)
    columns = int(rows * ratio)
    rows, columns = ((n + factor // 2) // factor * factor for n in (rows, columns))
    return max(rows, factor), max(columns, factor)


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
