"""From any picture to one that an image tokenizer takes, as its release prepares it.

    uint8 (H, W, 3) --prepare--> uint8 (h, w, 3), h and w multiples of the patch --to_tensor--> [-1, 1]

All scale to [-1, 1] by v / 127.5 - 1. What differs is the size, a release's `config.fit`, one of our own's `any_size`:

    square      largest centred square, resized to `image`          MoVQGAN (notebooks/Inference.ipynb); our own
    short_side  short side resized to `image`, then centre crop      Chameleon (inference/image_tokenizer.py, Lanczos),
                                                                     Janus (paper, 4.1: filter not stated), LlamaGen
    area        about image * image pixels, in shape                 Emu3.5 (src/utils/input_utils.py)
    within      its own size where that lies within `pixels`         Emu3 (image_processing_emu3visionvq.py)
    sizes       the nearest of the layout's sizes, then centre crop  Lumina-mGPT (data/item_processor.py); `any_size`

transformers' ChameleonImageProcessor multiplies by 0.0078 instead of 2 / 255, so its white is 0.989 and some
codes differ; Chameleon's own code, which trained the model, is what is followed here.
"""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from unimm.config.images import ConvTokenizer, Emu3, ImageTokenizer, Published
from unimm.config.model import VisionFeatures
from unimm.pictures import cropped, fit, nearest_size, padded, resized, size_of_area, size_within, to_png


def prepare(config: ImageTokenizer, array: np.ndarray, grids: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """The picture at a size that the tokenizer takes. `grids` are the layout's sizes in codes, (rows, columns)."""
    side, filter = config.image, "bicubic"
    height, width, patch = *array.shape[:2], config.downsample
    if isinstance(config, Published):
        how, filter = config.fit, config.filter
    else:  # our own
        how = "sizes" if isinstance(config, ConvTokenizer) and config.any_size else "square"
    match how:
        case "square":
            return fit(array, side)
        case "short_side":
            return cropped(array, (side, side), filter)
        case "area":
            return resized(array, size_of_area(height, width, side * side, patch), filter)
        case "within":
            pixels = config.pixels if isinstance(config, Emu3) else (side * side // 2, side * side)
            return resized(array, size_within(height, width, pixels, patch), filter)
        case "sizes":
            sizes = [(h * patch, w * patch) for h, w in grids] or [(side, side)]
            return cropped(array, nearest_size(height, width, sizes), filter)
        case _:
            assert_never(how)


def as_seen(config: VisionFeatures, array: np.ndarray) -> bytes:
    """The whole picture as the vision encoder of `image_in` sees it, as PNG."""
    return to_png(padded(array, config.image, config.background))
