"""What a run shows of itself while it trains: reconstructions, and drawings of its own captions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from unimm.diffusion.detokenizer import FlowDetokenizer
from unimm.generate.use import draw
from unimm.images.base import ImageTokenizer
from unimm.images.measure import measure, psnr
from unimm.images.tokenizer import to_codes, to_pixels, to_tensor
from unimm.pictures import grid, write_png
from unimm.resize import fit, resized
from unimm.sample import Text
from unimm.system import System

Preview = Callable[[int], dict[str, float] | None]


def _target(folder: Path, step: int) -> Path:
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    return folder / "previews" / f"step-{step:08d}.png"


def preview_reconstructions(tokenizer: ImageTokenizer, images: np.ndarray, folder: Path, step: int) -> dict[str, float]:
    """Pictures above what comes back of them, and the measures of all `images` for the metrics."""
    found = measure(tokenizer, list(images))
    write_png(_target(folder, step), grid([*images[:8], *found.back[:8]]))
    return {f"preview/{name}": value for name, value in found.values.items()}


def preview_detokenized(decoder: FlowDetokenizer, images: np.ndarray, folder: Path, step: int) -> dict[str, float]:
    """Pictures, what their tokenizer gives back of them, enlarged, and what the decoder does; how near both come."""
    tokenizer, kinds = decoder.tokenizer, {}
    codes = to_codes(tokenizer, [fit(image, tokenizer.config.image) for image in images])
    if tokenizer.draws:
        kinds["enlarged"] = [resized(picture, images.shape[1:3]) for picture in to_pixels(tokenizer, codes)]
    kinds["drawn"] = to_pixels(decoder, codes)
    write_png(_target(folder, step), grid([*images[:8], *(p for some in kinds.values() for p in some[:8])]))
    return {f"psnr_{kind}": psnr(*(to_tensor(list(some)) / 2 for some in (images, found)))
            for kind, found in kinds.items()}


def preview_drawings(system: System, prompts: list[str], folder: Path) -> Preview | None:
    """Drawings of the same few prompts, so that a row of files shows the learning; None without prompts."""
    def preview(step: int) -> None:
        pictures = draw(system, [[Text(p)] for p in prompts], list(range(len(prompts))))
        write_png(_target(folder, step), grid(pictures, prompts, columns=4))

    return preview if prompts else None
