"""What a server does where an image's numbers, or a method, are at fault: it goes on, counts it, and says so once.

A request must not be able to end the engine for the others, so nothing is raised here; and on a GPU the host does not
wait to see whether there was a fault.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .log import LOGGER

_FILE = "FOVEATE_FAULTS"  # in the environment of a server's processes: the file in which a fault is a byte
# Squares of the distances of vectors of such numbers, summed over their columns, are within the range of float32.
LARGEST = 1e15
_NOT_FINITE = (
    "the embeddings of an image, or what a method reads of its encoder, hold NaN, infinity or numbers beyond %g: it "
    "keeps its first tokens, with zeros in the place of what is not finite. A model in float16 may overflow: serve it "
    "in bfloat16. This is logged once; further images are counted."
)


class Faults:
    """How many images a server could not choose for, in one process.

    Attributes:
        failed: images for which their method raised; each is logged with its method and the error, once a method.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._told: set[str] = set()
        self._counted = 0  # of those that are not finite
        self._total: Tensor | None = None  # on the device
        self._seen: Tensor | None = None  # its copy on the host

    @property
    def non_finite(self) -> int:
        """Images whose numbers could not be used; on a GPU those of the last steps may be missing yet.

        The host does not wait: it reads a copy that the device writes when it comes to it.
        """
        return 0 if self._seen is None else int(self._seen)

    def count_unusable(self, usable: Tensor) -> None:
        """Count the images for which `usable` (I,) is false, without waiting for the device."""
        self._tell_of_non_finite()  # of those before
        with torch.inference_mode():  # in which the totals may be written to, whatever mode they were made in
            found = (~usable).sum()
            if self._total is None or self._seen is None:
                self._total = torch.zeros_like(found)
                pinned = found.device.type == "cuda"  # so that the device writes it by itself
                self._seen = torch.zeros((), dtype=torch.long, device="cpu", pin_memory=pinned)
            self._total += found
            self._seen.copy_(self._total, non_blocking=True)
        self._tell_of_non_finite()  # on a CPU at once

    def count_failed(self, what: str, images: int, error: Exception) -> None:
        """Count images that keep their first tokens because `what`, such as a method, raised."""
        self.failed += images
        add_faults(images)
        if what not in self._told:
            self._told.add(what)
            LOGGER.error(
                "%s raised where it must not: the image keeps its first tokens. This is logged once; further images "
                "are counted.",
                what,
                exc_info=error,
            )

    def _tell_of_non_finite(self) -> None:
        seen = self.non_finite  # once: a device may write a new total at any time
        add_faults(seen - self._counted)
        self._counted = seen
        if _NOT_FINITE not in self._told and seen:
            self._told.add(_NOT_FINITE)
            LOGGER.warning(_NOT_FINITE, LARGEST)


def find_usable(images: Sequence[Sequence[Tensor]]) -> Tensor:
    """(I,) bool: which images have only numbers that can be computed with.

    Args:
        images: for each its embeddings and cues, of any shape.
    """
    # NaN is passed on, and not at most anything.
    ends = [[end.float() for part in parts if part.is_floating_point() for end in part.aminmax()] for parts in images]
    return torch.stack([torch.stack(of_image).abs().amax() <= LARGEST for of_image in ends])


def zero_non_finite(rows: Tensor) -> Tensor:
    """The same with zeros in the place of NaN and infinity, which would spread in the language model."""
    return rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def share_faults() -> None:
    """Make the file that the processes of a server share; called before vLLM starts its engine."""
    if _FILE not in os.environ:
        number, os.environ[_FILE] = tempfile.mkstemp(prefix="foveate-", suffix=".count")
        os.close(number)
        atexit.register(Path(os.environ[_FILE]).unlink, missing_ok=True)


def add_faults(images: int) -> None:
    """Count images at fault, in whichever process meets them."""
    if images and _FILE in os.environ:
        with contextlib.suppress(OSError), open(os.environ[_FILE], "ab") as file:  # a full disk must not end the engine
            file.write(bytes(images))


def count_faults() -> int:
    """Images at fault since the server started, over all its processes on this machine."""
    try:
        return os.stat(os.environ[_FILE]).st_size
    except (KeyError, OSError):
        return 0
