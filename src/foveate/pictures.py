"""Pictures on disk, each checked before any model is loaded. Needs nothing but Pillow."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image, ImageOps

from .errors import FoveateError

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class PictureError(FoveateError, ValueError):
    """A picture or a folder of pictures is missing or cannot be read."""


def open_image(path: Path) -> Image.Image:
    """The picture at `path`, fully decoded, upright, RGB.

    Raises:
        PictureError: when it is missing, is no picture, or is damaged.
    """
    if not path.is_file():
        raise PictureError(f"there is no image file at {path}; check the path.")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise PictureError(f"{path} is not an image that Pillow can read; give a PNG, JPEG or WebP file.") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".")
        raise PictureError(f"{path} is damaged or incomplete ({reason}); give an intact image.") from None
    return upright.convert("RGB")


def image_files(folder: Path) -> list[Path]:
    """The pictures in `folder`, sorted by name.

    Raises:
        PictureError: when the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise PictureError(f"there is no folder {folder}; give a directory of images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise PictureError(f"the folder {folder} holds no images; give one with PNG, JPEG or WebP files.")
    return files
