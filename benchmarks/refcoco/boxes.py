"""RefCOCO as InternVL is evaluated on it: one expression at a time, boxes in thousandths of the picture's sides."""

from __future__ import annotations

import re
from typing import Any

from foveate.data.boxes import OVERLAP, Box, iou

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
SIDE = 1000.0  # what boxes are counted in
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


def one_expression_a_row(dataset: Any) -> Any:
    """A row for each expression, under ``expression``; rows of RefCOCO hold a list of them under ``answer``."""
    pairs = [(row, text) for row, texts in enumerate(dataset["answer"]) for text in texts]
    rows = dataset.select([row for row, _ in pairs])
    return rows.add_column("expression", [text for _, text in pairs])


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return PROMPT.format(doc["expression"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Whether the box covers that of the object by half of their union; ``picture`` tells which questions share one."""
    given, wanted = box_in(results[0], *doc["image"].size), box_of(doc["bbox"])
    right = given is not None and iou(given, wanted) >= OVERLAP
    return {"ACC@0.5": float(right), "picture": picture_of(doc["file_name"])}


def box_in(answer: str, width: int, height: int) -> Box | None:
    """The first box that an answer names, in pixels; None where it names none."""
    numbers = [float(one) / SIDE for one in _NUMBERS.findall(answer)[:4]]
    if len(numbers) < 4:
        return None
    left, top, right, bottom = numbers
    return (left * width, top * height, right * width, bottom * height)


def box_of(sides: Any) -> Box:
    """The data set's left, top, width and height as left, top, right and bottom."""
    left, top, width, height = (float(side) for side in sides)
    return (left, top, left + width, top + height)


def picture_of(file_name: str) -> str:
    """The picture of a row: its file is named after the picture and the object in it."""
    return file_name.rsplit("_", 1)[0]
