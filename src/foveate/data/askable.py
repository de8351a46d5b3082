"""Which questions of a file a model can be asked, found out before any is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import FoveateError
from .images import image_size
from .limits import check_question, explain_failure, fit_picture
from .samples import BadLine, Sample, in_order, samples_file, unusable

_LONG, _SMALL = 8, 32  # times as long as wide, pixels of a side: processors are asked about such pictures only


def askable(
    processor: Any, samples: Sequence[Sample], bad: Sequence[BadLine], path: Path, skip_bad: bool = False
) -> tuple[list[Sample], list[BadLine]]:
    """The samples that a model with this processor can be asked, and the lines that are left out, with those known.

    A question must not hold a model's placeholder, and pictures that are very long or very small must be of a size that
    the processor takes; those of usual shape are not looked at.

    Args:
        processor: of the model.
        samples: of a file, in order.
        bad: what of the file is left out already.
        path: of the file or its folder, for the error.
        skip_bad: leave out more, rather than to raise.

    Raises:
        SampleError: for what the model cannot be asked; it names the lines.
    """
    sizes: dict[tuple[int, int], str] = {}
    found = [(sample, _fault(processor, sample, sizes)) for sample in samples]
    wrong = [BadLine(sample.where, fault) for sample, fault in found if fault]
    left = [sample for sample, fault in found if not fault]
    if wrong and not (skip_bad and left):
        raise unusable(samples_file(path), wrong, skip_bad)
    return left, in_order([*bad, *wrong])


def _fault(processor: Any, sample: Sample, sizes: dict[tuple[int, int], str]) -> str:
    try:
        check_question(processor, sample.question)
    except FoveateError as error:
        return str(error)
    for picture in sample.pictures:
        size = image_size(picture) if isinstance(picture, Path) else picture.size
        if min(size) and (max(size) > _LONG * min(size) or min(size) < _SMALL):
            if size not in sizes:
                sizes[size] = _refusal(processor, size)
            if sizes[size]:
                return f"{picture.name if isinstance(picture, Path) else 'a picture'}: {sizes[size]}"
    return ""


def _refusal(processor: Any, size: tuple[int, int]) -> str:
    """Why the processor cannot take a picture of this size; empty where it can."""
    picture = fit_picture(processor, Image.new("RGB", size))
    try:
        processor.image_processor(images=[picture], return_tensors="pt")
    except Exception as error:  # processors raise nearly everything
        return str(explain_failure(processor, [picture], error)).partition(": ")[2]
    return ""
