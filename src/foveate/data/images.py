"""Pictures, as an image viewer shows them: files that are checked before any model is loaded, and pictures in memory.

A vision encoder takes 8-bit RGB. What else there is becomes that:

- 16-bit integers are divided by their full range: 65535 is white, whatever the brightest pixel is.
- 32-bit integers that fit 8 bits are taken as these, those that fit 16 bits as 16-bit ones; others are stretched from
  their smallest value (black) to their largest (white).
- Floats between 0 and 1 are taken as such (1 is white); others are stretched by their range, too. NaN is black, and
  infinity does not count for the range.
- What is transparent lies on white.
- The orientation that a camera noted is applied. Of an animation the first frame counts, of a document the first page.

Needs nothing but Pillow, and NumPy for what is not 8 bits deep.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from ..errors import FoveateError

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_PROGRAMS = frozenset({"EPS"})  # no pictures but programs, which Pillow hands to Ghostscript
_SIXTEEN = frozenset({"PNG", "PPM"})  # formats whose integers beyond 8 bits are 16-bit ones, in whatever mode they come
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError)


class PictureError(FoveateError, ValueError):
    """A picture or a folder of pictures is missing or cannot be read."""


def open_image(path: Path) -> Image.Image:
    """The picture at `path`, fully decoded, as `to_rgb` makes it; its `filename` is the path.

    Raises:
        PictureError: when it is missing, is no picture, is damaged, or is too large to open.
    """
    if not path.is_file():
        folder = f"{path} is a folder; give the pictures in it" if path.is_dir() else "check the path"
        raise PictureError(f"there is no image file at {path}; {folder}.")
    return _decode(path, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """The picture in the bytes of a file, as `open_image` gives one; `name` is its `filename` and stands in errors.

    Raises:
        PictureError: when it is no picture, is damaged, or is too large to open.
    """
    return _decode(io.BytesIO(content), name)


def _decode(source: Path | IO[bytes], name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():  # what Pillow opens is not too large, and metadata may be damaged
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                if image.format in _PROGRAMS:
                    raise Image.UnidentifiedImageError
                image.load()
                shown = to_rgb(image)
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f"{name} is not an image that Pillow can read; give a PNG, JPEG or WebP file.") from None
    except PermissionError:
        raise PictureError(f"{name} may not be read; allow it, or give another image.") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PictureError(_too_large(name, str(error))) from None
    except _DAMAGE as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise PictureError(f"{name} is damaged or incomplete ({reason}); give an intact image.") from None
    shown.filename = name  # type: ignore[attr-defined]  # as Pillow's own of a file have it
    return shown


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as an image viewer shows it: upright, on white, 8-bit RGB; the same object where it is that already.

    Raises:
        PictureError: when it is no picture of Pillow's, has no pixels, or cannot become RGB.
    """
    if not isinstance(image, Image.Image):
        raise PictureError(f"{type(image).__name__} is not a picture; give one of PIL.Image, or a path.")
    if 0 in image.size:
        raise PictureError(f"{name_of(image)} has no pixels ({image.width} x {image.height}); give another image.")
    try:
        image.load()
        turn, shown = _turn(image), _on_white(image)
    except _DAMAGE as error:
        reason = str(error).rstrip(".")
        raise PictureError(f"{name_of(image)} cannot be shown as RGB ({reason}); save it as a PNG file.") from error
    if shown is image and turn is None:
        return image
    shown = shown if turn is None else shown.transpose(turn)
    shown.info = {}  # the orientation and the transparency that it tells of are used up
    if name := getattr(image, "filename", ""):
        shown.filename = name  # type: ignore[attr-defined]
    return shown


def name_of(image: Image.Image, otherwise: str = "the picture") -> str:
    """The file that a picture was read from, for messages; `otherwise` for one that was made in memory."""
    return str(getattr(image, "filename", "") or otherwise)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the picture at `path` as it is stored, from its first bytes; (0, 0) for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                return opened.size
    except (Image.DecompressionBombError, *_DAMAGE):
        return (0, 0)


def image_files(folder: Path) -> list[Path]:
    """The pictures in `folder`, sorted by name.

    Raises:
        PictureError: when the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise PictureError(f"there is no folder {folder}; give a directory of images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise PictureError(f"the folder {folder} holds no images; give one with PNG, JPEG or WebP files.")
    return files


def _too_large(name: str, error: str) -> str:
    pixels = re.search(r"\((\d+) pixels\)", error)
    size = f" ({int(pixels[1]):,} pixels)" if pixels else ""
    most = f" to at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels" if Image.MAX_IMAGE_PIXELS else ""
    return f"{name} is too large{size}; scale it down{most}."


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn it as its EXIF data say; not at all where these are damaged, as viewers do."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return None


def _on_white(image: Image.Image) -> Image.Image:
    """8-bit RGB, with white behind what is transparent."""
    if image.mode == "La":  # the same with its grey multiplied already
        image = Image.merge("RGBa", [*[image.getchannel(0)] * 3, image.getchannel(1)])
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image)
    if "A" in image.getbands() or "a" in image.mode or "transparency" in image.info:
        layer = _with_alpha(image)
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # 16-bit colours, of which Pillow keeps the upper 8 bits
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image.convert("RGBA")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of deeper integers or floats, scaled as the module says."""
    import numpy as np

    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow takes them for signed
    levels = _scale_to_bytes(values, image.mode.startswith("I;16") or image.format in _SIXTEEN)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns these where they are at most 8 bits deep
        levels = 255 - levels
    if isinstance(hidden := image.info.get("transparency"), int):
        levels = np.where(values == hidden, np.uint8(255), levels)
    return Image.fromarray(levels).convert("RGB")


def _scale_to_bytes(values: np.ndarray, sixteen: bool) -> np.ndarray:
    """(H, W) uint8 of integers or floats; `sixteen` tells that they are 16-bit ones, whatever their type."""
    import numpy as np

    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype.kind in "ui" and low >= 0 and (sixteen or high <= 65535):
        black, white = 0.0, 65535.0 if sixteen or high > 255 else 255.0
    elif values.dtype.kind == "f" and ((low >= 0 and high <= 1) or low == high):
        black, white = 0.0, 1.0
    else:
        black, white = low, high if high > low else low + 1
    shares = (np.nan_to_num(values.astype(np.float64), nan=black, posinf=white, neginf=black) - black) / (white - black)
    return np.floor(255 * shares.clip(0, 1) + 0.5).astype(np.uint8)
