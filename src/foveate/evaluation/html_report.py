"""The report of an evaluation as one HTML file: tables to sort, curves to point at, every question with its picture.

The file needs nothing beside it and asks nobody for anything: styles, scripts, figures and pictures lie within it, the
figures as JSON, each picture once. Whatever came from outside (questions, answers, names) is data in it, never markup.
It holds at most `PICTURES_LIMIT` bytes of pictures, `MASKS_LIMIT` bytes of what was kept and `QUESTIONS_LIMIT`
questions; of more, those come first that were answered right before pruning and wrong after.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.clips import spread
from ..data.geometry import visible_part
from ..data.images import open_image, to_rgb
from ..data.samples import Sample
from ..data.tiles import TiledPicture
from ..errors import FoveateError
from ..files import COMMENT, write_text
from .inference import TIMES, pack_mask, unpack_mask
from .palette import style_of
from .plots import strong_labels
from .report import ABOUT, COSTS_NOTE, Report
from .runs import BASELINES, ORACLE, REFERENCES, UNPRUNED, Run
from .statistics import Estimate

PAGE = "report.html"
PICTURES_LIMIT = 16_000_000  # bytes of all pictures, as they stand in the file
MASKS_LIMIT = 12_000_000
QUESTIONS_LIMIT = 10_000
_SIZES = ((320, 82, 27_000), (240, 72, 12_000), (160, 65, 5_000))  # the longer side, JPEG's quality, bytes to expect
_FRAMES = 8  # of a clip, at most
_CHUNK = 256  # pictures that are decoded before it is known whether they fit


def write_html(
    report: Report, folder: Path, samples: Sequence[Sample] = (), image_processor: Any | None = None
) -> Path:
    """Write ``report.html`` into a folder; returns its path.

    Args:
        report: to write.
        folder: that is there.
        samples: the questions, for their pictures; those without a sample of their id are shown without any.
        image_processor: the model's, which says what part of a picture it sees; None: all of it.
    """
    path = folder / PAGE
    write_text(path, build_html(report, samples, image_processor))
    return path


def build_html(report: Report, samples: Sequence[Sample] = (), image_processor: Any | None = None) -> str:
    """The whole page; the same for the same results and pictures. See `write_html`."""
    order = _by_importance(report)[:QUESTIONS_LIMIT]
    chosen = sorted(order)
    by_id = {sample.id: sample for sample in samples}
    pictures, shown = _embed_pictures(report, order, by_id, image_processor)
    masks = collect_masks(report, order, chosen, by_id)
    page = resources(__package__) / "page"
    scripts = ("chart.js", "questions.js", "report.js")
    parts = {
        "comment": COMMENT,
        "title": html.escape(f"{report.results.configuration['model']}, {report.results.configuration['suite']}"),
        "styles": (page / "report.css").read_text(encoding="utf-8"),
        "data": "\n".join(
            [
                _data("summary", embed(summarize(report))),
                _data("questions", embed(collect_questions(report, chosen, shown))),
            ]
        ),
        "script": "\n".join((page / name).read_text(encoding="utf-8") for name in scripts),
        "pictures": "\n".join(
            [
                _data("masks", embed(masks)),
                *(_data(f"picture-{number}", content, "text/plain") for number, content in enumerate(pictures)),
            ]
        ),
    }
    text = (page / "report.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        before, mark, after = text.partition(f"<!--{name}-->")
        assert mark, name
        text = before + content + after
    return text


def _data(name: str, content: str, kind: str = "application/json") -> str:
    return f'<script type="{kind}" id="{name}">{content}</script>'


def embed(value: Any) -> str:
    """JSON that ends no script, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def summarize(report: Report) -> dict[str, Any]:
    """What the tables and the curves are made of."""
    results, boot = report.results, report.bootstrap
    strong = strong_labels(report)
    labels = list(dict.fromkeys(row.label for row in report.rows))
    kinds = ("method", "oracle", "baseline", "reference")
    labels.sort(key=lambda one: (kinds.index(_kind(one)), strong.index(one) if one in strong else len(strong)))
    facts = ("model", "suite", "foveate", "torch", "max_new_tokens", "seed")
    return {
        "facts": {name: results.configuration[name] for name in facts if name in results.configuration},
        "preface": report.preface(tables=False),
        "columns": list(boot.columns),
        "keeps": report.keeps,
        "reference": report.reference,
        "failing": {keep: report.failing(keep).questions for keep in report.keeps},
        "failing_note": report.failing_note().replace("*", ""),
        "rows": [_row(report, place) for place in range(len(report.rows))],
        "labels": [
            {
                "name": label,
                "kind": _kind(label),
                "about": ABOUT.get(label, ""),
                "strong": label in strong,
                **asdict(style_of(label)),
            }
            for label in labels
        ],
        "costs": COSTS_NOTE.replace("*", ""),
        "machine": results.machine,
        "left_out": [
            {"what": what, "where": one["where"], "why": one["why"]}
            for what, lines in (("skipped", results.skipped), ("failed", results.failed))
            for one in lines
        ],
        "refused": [{"method": one["label"], "keep": one["keep"], "why": one["why"]} for one in results.refused],
    }


def _row(report: Report, place: int) -> dict[str, Any]:
    boot, row = report.bootstrap, report.rows[place]
    full = report.at(UNPRUNED)
    other = report.at(report.reference, row.keep) if report.reference and row.keep else None
    cost = row.costs
    return {
        "label": row.label,
        "keep": row.keep,
        "seeds": row.seeds,
        "tokens": _round(cost["visual_tokens"], 2),
        "gflops": _round((cost["text_flops"] + cost["vision_flops"]) / 1e9, 5),
        "kv": _round(cost["kv_bytes"] / 1e3, 2),
        "ms": _round(1e3 * row.seconds, 3) if row.times else None,
        "times": [_round(1e3 * row.times[name], 3) for name in TIMES] if row.times else None,
        "scores": [_interval(boot.score(place, column)) for column in boot.columns],
        "kept": None if full is None else _interval(boot.retention(place, full)),
        "failing": {
            keep: _interval(score) for keep in report.keeps if (score := report.failing_score(place, keep)) is not None
        },
        "minus": None if other is None or other == place else _interval(boot.difference(place, other)),
    }


def _kind(label: str) -> str:
    if label in REFERENCES:
        return "reference"
    return "oracle" if label == ORACLE else "baseline" if label in BASELINES else "method"


def _interval(estimate: Estimate) -> list[float | None]:
    """In percent: the value and the ends of its interval; None for what is not known."""
    return [_round(100 * one, 3) for one in (estimate.value, estimate.low, estimate.high)]


def _round(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def collect_questions(report: Report, chosen: Sequence[int], shown: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Questions and answers. Texts stand in `texts` once; all else names them by their place there.

    Args:
        report: of the evaluation.
        chosen: places of the questions, in order.
        shown: by place, the numbers of the pictures.
    """
    results = report.results
    places: dict[str, int] = {}

    def number(text: str) -> int:
        return places.setdefault(text, len(places))

    families = sorted({sample["family"] for sample in results.samples})
    samples = [
        {
            "id": sample["id"],
            "family": families.index(sample["family"]),
            "question": number(sample["question"]),
            "truth": [number(answer) for answer in sample["answers"]],
            "metric": sample["metric"],
            "pictures": list(shown.get(place, ())),
        }
        for place in chosen
        for sample in (results.samples[place],)
    ]
    runs = [
        {
            "label": run["label"],
            "keep": run["keep"],
            "seed": run["seed"],
            "answers": [number(run["answers"][place]) for place in chosen],
            "right": "".join(str(int(run["right"][place])) for place in chosen),
        }
        for run in results.runs
    ]
    return {"all": len(results.samples), "families": families, "texts": list(places), "samples": samples, "runs": runs}


def collect_masks(
    report: Report, order: Sequence[int], chosen: Sequence[int], samples: Mapping[str, Sample]
) -> list[list[list[str]] | None]:
    """For each run and chosen question the masks of its pictures; None for runs of which none is known.

    Masks of questions at the end of `order` are left out once all others take `MASKS_LIMIT` bytes.
    """
    results = report.results
    kept = [results.kept.get(Run(run["label"], run["keep"], seed=run["seed"]).key) for run in results.runs]
    room, within = MASKS_LIMIT, set()
    for place in order:
        room -= sum(len(mask) + 5 for one in kept if one for mask in one[place])
        if room < 0:
            break
        within.add(place)
    joined: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # most runs that keep all keep the same

    def masks(one: Sequence[tuple[str, ...]], place: int) -> list[str]:
        if place not in within:
            return []
        name = results.samples[place]["id"]
        key = name, one[place]
        if key not in joined:
            joined[key] = join_tiles(one[place], samples.get(name))
        return joined[key]

    return [None if one is None else [masks(one, place) for place in chosen] for one in kept]


def join_tiles(masks: Sequence[str], sample: Sample | None) -> list[str]:
    """One mask a picture. A picture that the model saw in tiles has one of them all side by side, without the overview.

    Empty where it is not known which masks belong to which picture.
    """
    pictures = 1 if sample is None or sample.video else len(sample.pictures)
    if len(masks) == pictures:
        return list(masks)
    if pictures != 1 or not masks or sample is None or sample.video:
        return []
    picture = sample.pictures[0]
    grids = [unpack_mask(mask) for mask in masks]
    tile = grids[0][0]
    if tile.frames != 1:
        return []
    whole = TiledPicture.of(len(masks), tile, _size(picture))
    drawn = grids[: whole.tiles]
    if any(grid != tile for grid, _ in drawn):
        return []
    return [pack_mask(whole.grid, whole.join([torch.from_numpy(kept) for _, kept in drawn]))]


def _size(picture: Path | Image.Image) -> tuple[int, int]:
    return open_image(picture).size if isinstance(picture, Path) else picture.size


def _by_importance(report: Report) -> list[int]:
    """The places of all questions, those first that pruning lost."""
    right = {(run["label"], run["keep"]): run["right"] for run in report.results.runs}
    full = right.get((UNPRUNED, ""))
    others = [run["right"] for run in report.results.runs if _kind(run["label"]) == "method"]
    count = len(report.results.samples)
    lost = [bool(full and full[n] and any(not one[n] for one in others)) for n in range(count)]
    return sorted(range(count), key=lambda n: not lost[n])


def _embed_pictures(
    report: Report, order: Sequence[int], samples: Mapping[str, Sample], image_processor: Any | None
) -> tuple[list[str], dict[int, list[int]]]:
    """The pictures as data URIs, each once, and by the place of a question which of them it shows."""
    wanted: dict[Path | int, Path | Image.Image] = {}
    of_place: dict[int, list[Path | int]] = {}
    for place in order:
        sample = samples.get(report.results.samples[place]["id"])
        if sample is None:
            continue
        pictures = sample.pictures
        if sample.video:
            pictures = tuple(spread(pictures, _FRAMES))
        for one in pictures:
            key = one if isinstance(one, Path) else id(one)
            wanted.setdefault(key, one)
            of_place.setdefault(place, []).append(key)
    fitting = (size for size in _SIZES if size[2] * len(wanted) <= PICTURES_LIMIT)
    side, quality, _ = next(fitting, _SIZES[-1])
    encoded: dict[Path | int, str] = {}
    room, keys = PICTURES_LIMIT, list(wanted)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            for key, content in zip(
                some, pool.map(lambda k: encode_picture(wanted[k], image_processor, side, quality), some), strict=True
            ):
                room -= len(content or "")
                if content and room >= 0:
                    encoded[key] = content
            if room < 0:
                break
    in_order = list(dict.fromkeys(key for place in sorted(of_place) for key in of_place[place] if key in encoded))
    number = {key: n for n, key in enumerate(in_order)}
    shown = {
        place: [number[key] for key in keys] for place, keys in of_place.items() if all(key in number for key in keys)
    }
    return [encoded[key] for key in in_order], shown


def encode_picture(picture: Path | Image.Image, image_processor: Any | None, side: int, quality: int) -> str | None:
    """What the model sees of a picture as a JPEG in a data URI; None where it can no longer be opened."""
    try:
        image = open_image(picture) if isinstance(picture, Path) else to_rgb(picture)
        seen = image if image_processor is None else visible_part(image, image_processor)
    except (FoveateError, OSError):
        return None
    small = seen.copy()
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
