"""What each release does to a picture before its tokenizer, against transformers' image processors."""

import numpy as np
import pytest
import torch
from images.published import TINY, whole_photographs
from PIL import Image
from transformers import Emu3ImageProcessor
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unimm.config.images import IBQ, Chameleon, ConvTokenizer, Emu3, LlamaGen, MoVQ
from unimm.images.prepare import prepare
from unimm.images.tokenizer import build_tokenizer, to_tensor
from unimm.pictures import cropped, nearest_size, padded, size_of_area, size_within


def values(processor, picture, **options):
    """The processor's pixel values, float32 (3, h, w)."""
    return torch.as_tensor(np.asarray(processor(Image.fromarray(picture), **options)["pixel_values"][0])).float()


def test_chameleon_crops_as_transformers_does_and_scales_as_its_own_code_does():
    processor = ChameleonImageProcessorPil()
    for picture in whole_photographs():
        got = prepare(Chameleon(), picture)
        assert got.shape == (512, 512, 3)
        want = values(processor, picture, do_rescale=False, do_normalize=False)
        assert np.array_equal(got, want.permute(1, 2, 0).byte().numpy())
        scaled = values(processor, picture)
        assert (to_tensor([got])[0] - scaled).abs().max() < 255 * (2 / 255 - 0.0078) + 1e-5  # 0.011, at white


@pytest.mark.parametrize("least, most", [(512 * 512, 1024 * 1024), (64 * 64, 128 * 128), (96 * 96, 10**7)])
def test_emu3_sizes_and_values_are_those_of_transformers(least, most):
    """Mean and deviation 0.5 are the release's (BAAI/Emu3-VisionTokenizer); transformers' defaults are CLIP's."""
    half = [0.5] * 3
    processor = Emu3ImageProcessor(min_pixels=least, max_pixels=most, image_mean=half, image_std=half, do_pad=False)
    for picture in whole_photographs():
        got = prepare(Emu3(pixels=(least, most)), picture)
        assert least <= got.shape[0] * got.shape[1] <= most
        assert (to_tensor([got])[0] - values(processor, picture)).abs().max() < 1e-5


def test_janus_shows_pictures_to_be_understood_as_transformers_does():
    processor = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for picture in whole_photographs():
        got = padded(picture, 384, (127, 127, 127))
        assert (to_tensor([got])[0] - values(processor, picture)).abs().max() < 1e-5


def test_janus_draws_pictures_whose_short_side_fills_the_square():
    tall = np.zeros((600, 384, 3), np.uint8)
    tall[108:492] = 255
    assert (prepare(LlamaGen(), tall) == 255).all()
    assert prepare(LlamaGen(image=256), np.zeros((300, 700, 3), np.uint8)).shape == (256, 256, 3)


@pytest.mark.parametrize("height, width, area, want", [
    (1024, 1024, 1024**2, (1024, 1024)), (1000, 2000, 512**2, (368, 720)), (9, 16, 1024**2, (768, 1360)),
    (3, 3000, 512**2, (16, 16000))])
def test_emu35_keeps_shape_and_area(height, width, area, want):
    """By hand: sqrt(512^2 / 2) = 362.04 -> 362 and 724 -> 368 and 720, the nearest multiples of 16."""
    assert size_of_area(height, width, area, 16) == want


def test_movq_takes_the_largest_square_as_what_its_notebook_asks_torchvision_for():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255
    assert (prepare(MoVQ(), wide) == 255).all() and prepare(MoVQ(), wide).shape == (512, 512, 3)


def test_the_layouts_size_that_shows_most_of_a_picture_is_chosen():
    sizes = [(512, 512), (256, 1024), (1024, 256), (384, 640)]
    assert nearest_size(300, 500, sizes) == (384, 640)
    assert nearest_size(500, 500, sizes) == (512, 512)
    assert nearest_size(1000, 100, sizes) == (1024, 256)
    config = Chameleon(fit="sizes")
    grids = [(h // 16, w // 16) for h, w in sizes]
    shapes = {prepare(config, picture, grids).shape for picture in whole_photographs()}
    assert shapes == {(512, 512, 3), (384, 640, 3)}
    assert prepare(config, whole_photographs()[0]).shape == (512, 512, 3)


@pytest.mark.parametrize("config", [*TINY.values(), Emu3(pixels=(4096, 9216)), IBQ(image=64),
                                    ConvTokenizer(image=64)], ids=lambda c: f"{c.kind}")
def test_whatever_is_prepared_can_be_encoded(config):
    tokenizer = build_tokenizer(config) if config.image == 64 else None
    for shape in ((5, 7), (7, 1400), (333, 64), (64, 64)):
        got = prepare(config, np.zeros((*shape, 3), np.uint8), [(8, 8), (4, 16)])
        assert got.dtype == np.uint8 and all(side % config.downsample == 0 for side in got.shape[:2])
        if tokenizer is not None:
            tokenizer.check_shape("it", got.shape)


def test_cropping_never_leaves_a_border():
    for shape in ((511, 300), (1, 2), (300, 511), (17, 17)):
        assert (cropped(np.full((*shape, 3), 9, np.uint8), (32, 48)) == 9).all()
    assert size_within(10, 10, (64, 100), 8) == (8, 8)


def test_our_own_of_any_size_take_the_nearest_of_the_layouts_sizes():
    picture = np.zeros((100, 210, 3), np.uint8)
    config, grids = ConvTokenizer(image=32, downsample=8, any_size=True), ((4, 4), (2, 4), (4, 2))
    assert prepare(config, picture, grids).shape == (16, 32, 3)
    assert prepare(ConvTokenizer(image=32, downsample=8), picture, grids).shape == (32, 32, 3)
