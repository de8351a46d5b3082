"""Pictures of all kinds against the levels that an image viewer shows."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveate.data.images import PictureError, image_size, open_image, to_rgb

RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))
RGB = np.dstack([RAMP] * 3)


def shown(image: Image.Image) -> np.ndarray:
    made = to_rgb(image)
    assert made.mode == "RGB"
    return np.asarray(made)


def reopened(image: Image.Image, picture_format: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, picture_format, **options)  # type: ignore[arg-type]
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("picture_format", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_sixteen_bits_are_scaled_by_their_full_range(picture_format: str) -> None:
    full = reopened(Image.fromarray(RAMP.astype(np.uint16) * 257), picture_format)
    assert np.array_equal(shown(full), RGB)
    dark = reopened(Image.fromarray(RAMP.astype(np.uint16)), picture_format)
    assert shown(dark).max() == 1  # 255 of 65535


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_order_of_sixteen_bits_in_memory(mode: str) -> None:
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.array_equal(shown(wide if mode == "I;16" else wide.convert("I").convert(mode)), RGB)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (RAMP.astype(np.int32), RGB),  # what fits 8 bits is meant so
        (RAMP.astype(np.int32) * 257, RGB),
        (RAMP.astype(np.int32) * 8421376, RGB),  # by its range
        (RAMP.astype(np.int32) - 128, RGB),
        (np.full((24, 32), -5, np.int32), np.zeros_like(RGB)),
        ((RAMP / 255).astype(np.float32), RGB),
        ((RAMP / 510).astype(np.float32), np.floor(RGB / 2 + 0.5)),  # taken as such, not stretched
        (RAMP.astype(np.float32), RGB),
        (RAMP.astype(np.float32) * 40 - 3000, RGB),
        (np.full((24, 32), 9, np.float32), np.full_like(RGB, 255)),
        (np.full((24, 32), 0.5, np.float32), np.full_like(RGB, 128)),
    ],
)
def test_deep_integers_and_floats(values: np.ndarray, wanted: np.ndarray) -> None:
    for image in (Image.fromarray(values), reopened(Image.fromarray(values), "TIFF")):
        assert np.abs(shown(image).astype(int) - wanted).max() <= 1


def test_unsigned_integers_of_32_bits_are_not_taken_for_negative_ones() -> None:
    values = RAMP.astype(np.uint32) * 16843009  # up to 2**32 - 1
    file = io.BytesIO()
    Image.fromarray(values.view(np.int32)).save(file, "TIFF")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # the entry of SampleFormat
    assert file.getvalue().count(signed) == 1
    image = Image.open(io.BytesIO(file.getvalue().replace(signed, unsigned)))
    assert image.mode == "I" and np.abs(shown(image).astype(int) - RGB).max() <= 1


def test_what_is_no_number_is_black_and_does_not_change_the_range() -> None:
    values = RAMP.astype(np.float32) * 2
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    got = shown(Image.fromarray(values))
    assert np.array_equal(got[1:], RGB[1:]) and got[0, :3, 0].tolist() == [0, 255, 0]
    assert not shown(Image.fromarray(np.full((3, 3), np.nan, np.float32))).any()


def test_scans_whose_white_is_zero_are_turned_around() -> None:
    for values in (RAMP.astype(np.uint16) * 257, (RAMP / 255).astype(np.float32)):
        image = Image.fromarray(255 * 257 - values if values.dtype == np.uint16 else 1 - values)
        assert np.abs(shown(reopened(image, "TIFF", tiffinfo={262: 0})).astype(int) - RGB).max() <= 1


def transparent(mode: str) -> Image.Image:
    """A dark square on nothing, whose colour nobody sees."""
    array = np.full((24, 32, 4), (90, 90, 90, 0), np.uint8)
    array[8:16, 8:24] = (10, 10, 10, 255)
    array[:8, :8] = (0, 0, 0, 128)
    image = Image.fromarray(array)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    got = shown(transparent(mode)).astype(int)
    assert (got[20] == 255).all() and (got[12, 12] == 10).all() and np.abs(got[4, 4] - 127).max() <= 1


def test_multiplied_grey_with_alpha_lies_on_white() -> None:
    grey = Image.merge("La", [Image.new("L", (2, 2), 20), Image.new("L", (2, 2), 128)])
    assert np.abs(shown(grey).astype(int) - (255 * 127 / 255 + 20)).max() <= 1


def test_palettes_with_transparency_lie_on_white() -> None:
    flat = Image.new("P", (2, 1))
    flat.putpalette([200, 0, 0, 10, 20, 30])
    flat.putpixel((1, 0), 1)
    for picture_format, hidden in (("PNG", 0), ("GIF", 0), ("PNG", b"\x00\xff")):
        image = reopened(flat, picture_format, transparency=hidden)
        assert shown(image).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    with_alpha = flat.convert("PA")
    with_alpha.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert shown(with_alpha).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize(("mode", "hidden"), [("RGB", (200, 0, 0)), ("L", 200), ("1", 255)])
def test_one_colour_can_be_the_transparent_one(mode: str, hidden: object) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), hidden)  # type: ignore[arg-type]
    assert shown(reopened(image, "PNG", transparency=hidden)).tolist() == [[[255] * 3, [0] * 3]]


def test_a_transparent_grey_of_sixteen_bits() -> None:
    image = reopened(Image.fromarray(np.array([[4660, 300]], np.uint16)), "PNG", transparency=4660)
    assert shown(image).tolist() == [[[255] * 3, [1] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["rgb", "rgba", "sixteen"])
def test_cameras_orientations_are_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.random.default_rng(0).integers(0, 255, (4, 6), np.uint8)
    if kind == "sixteen":
        image = Image.fromarray(array.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(array).convert(kind.upper())
    upright = ImageOps.exif_transpose(reopened(Image.fromarray(array), "PNG", exif=exif))
    made = to_rgb(reopened(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(made), np.dstack([np.asarray(upright)] * 3))
    assert to_rgb(made) is made


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_do_not_hide_a_picture() -> None:
    image = Image.fromarray(RGB)
    image.info["exif"] = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    assert np.array_equal(shown(image), RGB)


@pytest.mark.parametrize("mode", ["RGB", "1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_converted(mode: str) -> None:
    solid = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    assert (shown(solid) == 255).all()


def test_of_an_animation_the_first_frame_is_shown(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert open_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_rgb_is_handed_through() -> None:
    image = Image.fromarray(RGB)
    assert to_rgb(image) is image


def test_too_large_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PictureError, match=r"huge.png is too large \(4,096 pixels\); scale it down to at most 2,000"):
        open_image(path)
    assert image_size(path) == (0, 0)


@pytest.mark.filterwarnings("error")
def test_large_pictures_that_can_be_opened_are_no_matter_for_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(tmp_path / "large.png").size == image_size(tmp_path / "large.png") == (40, 40)


def test_no_program_is_run_to_draw_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "drawn.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(PictureError, match="is not an image that Pillow can read"):
        open_image(path)


def test_what_is_no_picture_is_refused() -> None:
    for wrong in (RGB, "a.png", None):
        with pytest.raises(PictureError, match="is not a picture"):
            to_rgb(wrong)  # type: ignore[arg-type]
    with pytest.raises(PictureError, match="has no pixels"):
        to_rgb(Image.new("RGB", (0, 5)))


def test_a_picture_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("LA", (4, 4)).save(path)
    assert open_image(path).filename == str(path)  # type: ignore[attr-defined]
    with Image.open(path) as opened:
        assert to_rgb(opened).filename == str(path)  # type: ignore[attr-defined]
