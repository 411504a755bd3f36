"""Every picture is either loaded as what a viewer shows, or refused with one line; every damaged file is made here."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from unimm.pictures import fit
from unimm.stream.pixels import MAX_PIXELS, ImageError, load_pixels

LOSSLESS = ["PNG", "BMP", "TIFF", "PPM", "TGA"]
LOSSY = ["JPEG", "WEBP"]


def photo(height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth colours, so that lossy formats stay close."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def refusal(source) -> str:
    with pytest.raises(ImageError) as caught:
        load_pixels(source, "cat.png")
    message = str(caught.value)
    assert message.startswith("cat.png: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_back(kind):
    assert np.array_equal(load_pixels(written(photo(), kind), "x"), photo())


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_come_close(kind):
    loaded = load_pixels(written(photo(), kind, quality=95), "x")
    assert loaded.dtype == np.uint8 and loaded.shape == photo().shape
    assert np.abs(loaded.astype(int) - photo()).mean() < 4


def test_path_bytes_and_picture_give_the_same(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(written(photo(), "PNG"))
    for source in (file, str(file), file.read_bytes(), Image.open(file)):
        assert np.array_equal(load_pixels(source, "x"), photo())


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY, "GIF", "AVIF", "JPEG2000"])
def test_a_file_cut_anywhere_is_refused_or_whole_but_never_half_grey(kind):
    whole = written(noise(), kind)
    expected = load_pixels(whole, "x")
    refused = 0
    for end in np.linspace(1, len(whole) - 1, 60).astype(int):
        try:
            loaded = load_pixels(whole[:end], "x")
        except ImageError:
            refused += 1
        else:  # all that was cut is what follows the last pixel
            assert np.array_equal(loaded, expected), f"{kind} cut at {end} of {len(whole)}"
    assert refused > 40


def test_a_cut_file_is_refused_even_where_another_library_asked_pillow_to_be_lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = written(noise(), "JPEG")
    assert "cut short" in refusal(whole[: len(whole) // 2])


def test_cmyk_becomes_rgb():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    for source in (cmyk, written(cmyk, "JPEG"), written(cmyk, "TIFF")):
        red = load_pixels(source, "x")[4, 4].astype(int)
        assert red[0] > 240 and red[1] < 20 and red[2] < 20


def test_transparency_is_shown_on_white_in_every_form():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (255, 0, 0, 255)  # left: transparent black, right: red
    full = Image.fromarray(rgba)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (4, 0, 8, 8))
    grey = Image.merge("LA", [Image.new("L", (8, 8), 0), full.getchannel("A")])
    sources = [full, written(full, "PNG"), written(full, "WEBP", lossless=True),
               written(palette, "PNG", transparency=0), written(palette, "PNG", transparency=b"\0\xff"),
               written(palette, "GIF", transparency=0), written(full.convert("RGB"), "PNG", transparency=(0, 0, 0))]
    for source in sources:
        loaded = load_pixels(source, "x")
        assert loaded[0, 0].tolist() == [255, 255, 255] and loaded[0, 7].tolist() == [255, 0, 0]
    assert load_pixels(grey, "x")[0, [0, 7], 0].tolist() == [255, 0]


def test_half_transparency_is_mixed_with_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(load_pixels(half, "x")[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    deep = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    loaded = load_pixels(written(Image.fromarray(deep), kind), "x")
    assert np.array_equal(loaded, np.repeat((np.arange(256).reshape(16, 16, 1)), 3, 2))


def test_sixteen_bit_colour_png_is_scaled():
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 4 for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")))
    assert load_pixels(png, "x")[0, 0].tolist() == [255, 128, 0]


def test_thirty_two_bit_pixels_are_refused_for_they_have_no_range():
    for mode in ("I", "F"):
        assert "no known range" in refusal(written(Image.new(mode, (4, 4)), "TIFF"))


def test_grey_and_black_and_white_become_three_equal_channels():
    grey = photo()[..., 0]
    assert np.array_equal(load_pixels(written(Image.fromarray(grey), "PNG"), "x"), np.stack([grey] * 3, -1))
    bits = load_pixels(written(Image.fromarray(grey > 99), "PNG"), "x")
    assert np.array_equal(bits[..., 0] == 255, grey > 99)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = written(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 3
    assert load_pixels(moving, "x")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # only the top left is white
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_pixels(written(stored, kind, exif=exif), "x")
    assert loaded.shape == (16, 32, 3)
    assert loaded[4, 8, 0] > 240 and loaded[4, 24, 0] < 15 and loaded[12, 8, 0] < 15


def test_exif_orientation_is_applied_to_sixteen_bits_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.zeros((16, 32), np.uint16))
    assert load_pixels(written(deep, "PNG", exif=exif), "x").shape == (32, 16, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_single_pixel_across_is_skipped_with_its_reason(size):
    message = refusal(written(Image.new("RGB", size), "PNG"))
    assert f"{size[0]} x {size[1]}" in message and "one colour" in message


def test_the_smallest_picture_with_content_is_kept():
    assert np.array_equal(load_pixels(written(photo(2, 2), "PNG"), "x"), photo(2, 2))


@pytest.mark.parametrize("side", [8193, 13000, 60000])
def test_a_bomb_is_refused_before_it_is_decoded(side, monkeypatch):
    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    bomb += written(photo(), "PNG")[33:]  # the rest of a small picture, for a decoder to start on
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    assert f"{MAX_PIXELS:,} pixels" in refusal(bomb)


def test_what_is_no_image_is_refused(tmp_path):
    assert "not an image" in refusal(b"<html>404</html>")
    assert "empty" in refusal(b"")
    assert "No such file" in refusal(tmp_path / "absent.png")
    assert "Is a directory" in refusal(tmp_path)


def test_postscript_is_not_run():
    assert "not an image" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n")


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from([*LOSSLESS, *LOSSY, "GIF", "ICO"]), data=st.data())
def test_damage_anywhere_is_an_image_error_or_a_picture(kind, data):
    file = bytearray(written(photo(), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = load_pixels(bytes(file), "x")
    except ImageError as why:
        assert "\n" not in str(why)
    else:
        assert loaded.dtype == np.uint8 and loaded.ndim == 3 and loaded.shape[2] == 3


def test_fit_crops_the_centre_and_keeps_what_already_fits():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = photo(8, 8)
    assert np.array_equal(fit(wide, 8), photo(8, 8))
    assert np.array_equal(fit(wide.transpose(1, 0, 2), 8), photo(8, 8).transpose(1, 0, 2))
    assert fit(photo(5, 7), 16).shape == (16, 16, 3)


def test_fit_averages_when_it_shrinks():
    chess = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((2, 2)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    small = fit(chess, 4)  # taking every 16th pixel would give black or white
    assert np.abs(small.astype(int) - 128).max() < 16
    assert np.array_equal(fit(np.full((50, 31, 3), 77, np.uint8), 8), np.full((8, 8, 3), 77, np.uint8))
