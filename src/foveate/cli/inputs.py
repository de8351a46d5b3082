"""What commands are given: pictures, method names, keep values; each checked before any model is loaded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from .handler import InputError

if TYPE_CHECKING:
    from ..budget import Budget

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def open_image(path: Path) -> Image.Image:
    """The picture at `path`, fully decoded, upright, RGB.

    Raises:
        InputError: when it is missing, is no picture, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no image file at {path}; check the path.")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow can read; give a PNG, JPEG or WebP file.") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is damaged or incomplete ({str(error).rstrip('.')}); give an intact image.") from None
    return upright.convert("RGB")


def image_files(folder: Path) -> list[Path]:
    """The pictures in `folder`, sorted by name.

    Raises:
        InputError: when the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a directory of images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"the folder {folder} holds no images; give one with PNG, JPEG or WebP files.")
    return files


def check_request(keep: str, *methods: str) -> Budget:
    """The budget that `keep` spells, once every method is known to exist.

    Raises:
        BudgetError: for a bad keep value.
        MethodError: for an unknown method.
    """
    from ..budget import Budget
    from ..methods import get_method

    budget = Budget(keep)
    for name in methods:
        get_method(name)
    return budget
