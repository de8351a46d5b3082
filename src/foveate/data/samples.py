"""Questions about pictures with their answers: what evaluation asks and training learns from, and files of them.

A file of samples is JSONL, one object a line::

    {"image": "photos/1.jpg", "question": "What colour is the car?", "answer": ["red", "dark red"]}
    {"image": ["a.png", "b.png"], "question": "Which is larger?", "answer": "the first"}
    {"video": "clips/7", "question": "Which way does it move?", "answer": "left", "family": "motion"}
    {"image": "photos/1.jpg", "question": "Where is the car?", "answer": "12 30 80 64", "metric": "iou"}
    {"image": "photos/1.jpg", "question": "What does the sign say?", "answer": "stop", "boxes": [[40, 8, 72, 40]]}

`image` and `video` are paths relative to the file; a video is a folder of frames in the order of their names, or a list
of frames. Optional are `id` (the line's number), `family` (what is reported alone; "questions"), `group` (which samples
hang together, for intervals; those of the same pictures), `metric`: see `foveate.data.metrics`, and `boxes`: where what
is asked about lies, ``[left, top, right, bottom]`` in pixels of the picture; of several images, or of the frames of a
clip, a list of such lists, one for each.

A line that cannot be used, or whose pictures cannot be read, is told by its number, with all others like it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from ..errors import FoveateError, near_miss
from .boxes import Box, box_of
from .images import image_files, open_image, to_rgb

Metric = Literal["exact", "contains", "iou"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_SHOWN = 5  # lines that cannot be used, in an error
_KEYS = ("image", "video", "question", "answer", "family", "id", "group", "metric", "boxes")


class SampleError(FoveateError, ValueError):
    """A file of samples is missing, or lines of it cannot be used."""


@dataclass(frozen=True)
class BadLine:
    """A line of a file of samples that cannot be used: which, such as ``line 7``, and the sentence that says why."""

    where: str
    why: str


@dataclass(frozen=True)
class Sample:
    """One question about pictures.

    Attributes:
        id: unique within its suite.
        question: plain text, without placeholders of a model.
        answers: the accepted ones, the first being that which a model learns.
        pictures: one or several images, or the frames of one clip; files, or pictures in memory.
        video: whether `pictures` are the frames of one clip.
        family: the kind of question, reported alone.
        group: what is resampled as one: samples of one group (one image) are not independent of each other.
        metric: how an answer is judged.
        boxes: for each frame, where in the picture (left, top, right, bottom, in pixels) the things asked about are;
            empty where that is not known. The metric "iou" compares with the first, which is not rounded.
        where: the line that it was read from, such as ``line 7``, for people; empty where it was made.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    pictures: tuple[Path | Image.Image, ...]
    video: bool = False
    family: str = "questions"
    group: str = ""
    metric: Metric = "exact"
    boxes: tuple[tuple[Box, ...], ...] = ()
    where: str = field(default="", compare=False, repr=False)

    def open(self) -> list[Image.Image]:
        """The pictures, RGB.

        Raises:
            PictureError: when one is missing or damaged.
        """
        return [open_image(one) if isinstance(one, Path) else to_rgb(one) for one in self.pictures]


def read_samples(path: Path) -> list[Sample]:
    """The samples of a JSONL file, or of the one such file in a folder. Pictures are looked for, but not opened.

    Raises:
        SampleError: when there is no such file, or for lines that cannot be used, with their numbers.
    """
    file = samples_file(path)
    samples, bad = _read(file, "exact")
    if bad:
        raise unusable(file, bad)
    return samples


def usable_samples(
    path: Path,
    metric: Metric = "exact",
    suffix: str = "",
    skip_bad: bool = False,
    choose: Callable[[Sequence[Sample]], Sequence[Sample]] = tuple,
) -> tuple[list[Sample], list[BadLine]]:
    """The samples of a JSONL file, or of the one such file in a folder, all of whose pictures could be opened.

    Args:
        path: of the file or the folder.
        metric: of the lines that name none.
        suffix: what every question ends with, such as "Answer in one word."
        skip_bad: leave out lines that cannot be used, rather than to raise.
        choose: picks among the lines, before their pictures are opened.

    Returns:
        The samples, and the lines that were left out.

    Raises:
        SampleError: when there is no such file, when nothing in it can be used, or for lines that cannot, with their
            numbers.
    """
    if metric not in METRICS:
        raise SampleError(f"unknown metric {metric!r}{near_miss(metric, METRICS)}")
    file = samples_file(path)
    read, bad = _read(file, metric)
    samples = list(choose(read))
    unreadable = _unreadable(samples)
    samples = [sample for sample in samples if sample.where not in unreadable]
    bad = in_order([*bad, *starmap(BadLine, unreadable.items())])
    if bad and not (skip_bad and samples):
        raise unusable(file, bad, skip_bad)
    if suffix:
        samples = [replace(sample, question=f"{sample.question} {suffix}") for sample in samples]
    here = f"{file.parent}{os.sep}"  # what is left out is passed on, without the folders of this machine
    return samples, [replace(one, why=one.why.replace(here, "")) for one in bad]


def _read(file: Path, metric: Metric) -> tuple[list[Sample], list[BadLine]]:
    """The lines that can be used, and those that cannot."""
    samples: list[Sample] = []
    bad: list[BadLine] = []
    seen: set[str] = set()
    for number, line in _lines(file):
        where = f"line {number}"
        try:
            sample = replace(_sample(line, str(number), file.parent, metric), where=where)
            if sample.id in seen:
                raise SampleError(f"the id {sample.id!r} was used before; give each sample an id of its own.")
        except (FoveateError, OSError) as error:  # the latter for names that no file can have
            told = str(error) if isinstance(error, FoveateError) else f"{error.strerror}; give a path to a picture."
            bad.append(BadLine(where, told))
            continue
        seen.add(sample.id)
        samples.append(sample)
    if not samples and not bad:
        raise SampleError(f"{file} holds no samples; give it one JSON object a line.")
    return samples, bad


def _unreadable(samples: Sequence[Sample]) -> dict[str, str]:
    """The lines of which a picture is missing or damaged, and why; each picture is decoded once, all cores at it."""
    files = list(dict.fromkeys(one for sample in samples for one in sample.pictures if isinstance(one, Path)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = {path: why for path, why in zip(files, pool.map(_fault, files), strict=True) if why}
    found: dict[str, str] = {}
    for sample in samples:
        why = next((wrong[one] for one in sample.pictures if isinstance(one, Path) and one in wrong), None)
        if why is not None:
            found[sample.where] = why
    return found


def _fault(path: Path) -> str | None:
    try:
        open_image(path)
    except FoveateError as error:
        return str(error)
    return None


def in_order(bad: Sequence[BadLine]) -> list[BadLine]:
    """Lines that cannot be used, as they lie in their file."""
    return sorted(bad, key=lambda one: int(one.where.removeprefix("line ")))


def unusable(file: Path, bad: Sequence[BadLine], skip_bad: bool | None = None) -> SampleError:
    """The error that names lines which cannot be used; where they could be skipped, but are not, it says how."""
    fix = " --skip-bad leaves out what cannot be used." if skip_bad is False else ""
    if len(bad) == 1:
        return SampleError(f"{file}, {bad[0].where}: {bad[0].why}{fix}")
    told = " ".join(f"{one.where}: {one.why}" for one in bad[:_SHOWN])
    more = f" And {len(bad) - _SHOWN} more." if len(bad) > _SHOWN else ""
    return SampleError(f"{len(bad)} lines of {file} cannot be used. {told}{more}{fix}")


def samples_file(path: Path) -> Path:
    """The file of samples that a path means: itself, or the one such file in a folder.

    Raises:
        SampleError: when there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise SampleError(f"there is no file or folder {path}; give a JSONL file of samples, or its folder.")
    files = sorted(path.glob("*.jsonl"))
    if len(files) != 1:
        raise SampleError(f"the folder {path} holds {len(files) or 'no'} .jsonl files; give the path of one.")
    return files[0]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SampleError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _sample(line: str, number: str, folder: Path, default: Metric) -> Sample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number may have too many digits, brackets be too deep
        raise SampleError(f"this is not JSON ({getattr(error, 'msg', error)}); write one object a line.") from None
    if not isinstance(entry, dict):
        raise SampleError("this is not a JSON object; write {...} with image, question and answer.")
    for key in entry:
        if key not in _KEYS:
            raise SampleError(f"unknown key {key!r}{near_miss(key, _KEYS)}")
    if ("image" in entry) == ("video" in entry):
        raise SampleError('give either "image" or "video".')
    metric = entry.get("metric", default)
    if metric not in METRICS:
        raise SampleError(f"unknown metric {metric!r}{near_miss(str(metric), METRICS)}")
    pictures = _pictures(entry, folder)
    return Sample(
        id=_text(entry, "id", number),
        question=_text(entry, "question"),
        answers=_answers(entry, metric),
        pictures=pictures,
        video="video" in entry,
        family=_text(entry, "family", "questions"),
        group=_text(entry, "group", "\n".join(map(str, pictures))),
        metric=metric,
        boxes=_boxes(entry, len(pictures)),
    )


def _boxes(entry: dict[str, Any], pictures: int) -> tuple[tuple[Box, ...], ...]:
    """The boxes of each picture; of a single one, they may be given without a list around them."""
    value = entry.get("boxes")
    if value is None:
        return ()
    several = isinstance(value, list) and all(isinstance(one, list) and not _is_box(one) for one in value)
    each = value if several and value else [value]
    if len(each) != pictures or not all(isinstance(one, list) and all(map(_is_box, one)) for one in each):
        each_one = "frame" if "video" in entry else "image"
        more = f"; of {pictures} pictures, one list of boxes for each {each_one}" if pictures > 1 else ""
        raise SampleError(
            '"boxes" must be a list of [left, top, right, bottom] in pixels, left below right and top below bottom'
            f"{more}."
        )
    return tuple(tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in one) for one in each)


def _is_box(value: object) -> bool:
    """Whether this is a box that holds something."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in value):
        return False
    try:
        left, top, right, bottom = map(float, value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return bool(left < right and top < bottom and math.isfinite(right - left) and math.isfinite(bottom - top))


def _text(entry: dict[str, Any], key: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and key in ("id", "group"):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise SampleError(f'"{key}" must be a text that is not empty.')
    _require_characters(key, value)
    return value


def _require_characters(key: str, value: str) -> None:
    """Raise SampleError for halves of characters (lone surrogates), which can neither be encoded nor written."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SampleError(f'"{key}" holds half a character ({value.encode("ascii", "replace").decode()}).') from None


def _answers(entry: dict[str, Any], metric: Metric) -> tuple[str, ...]:
    value = entry.get("answer")
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise SampleError('"answer" must be a text or a list of accepted texts.')
    for answer in answers:
        _require_characters("answer", answer)
    if metric == "iou" and any(box_of(answer) is None for answer in answers):
        raise SampleError('with the metric "iou", "answer" must hold four numbers: left, top, right and bottom.')
    return tuple(answers)


def _pictures(entry: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    kind = "video" if "video" in entry else "image"
    value = entry[kind]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise SampleError(f'"{kind}" must be a path or a list of paths.')
    paths = [folder / name for name in names]
    if kind == "video" and isinstance(value, str):
        return tuple(image_files(paths[0]))
    for path in paths:
        if not path.is_file():
            raise SampleError(f"there is no image file at {path}; paths are relative to the file of samples.")
    return tuple(paths)
