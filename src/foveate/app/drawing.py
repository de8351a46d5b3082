"""What the page shows of a question, as HTML: a card for each run, and a table of what they cost.

The picture of a card is drawn by the page's own script (`page.js`) from numbers: which cells are kept, the rank of each
among the picks, and its score. So the three views of it share one picture, and pointing at a cell tells its numbers.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.metrics import agrees
from ..data.tiles import TiledPicture
from ..runtime import Report
from ..visualize.picks import STAYS, Picks
from .desk import UNPRUNED, Answer
from .marks import mark

_SIDE = 720  # pixels that the longer side of a shown picture has at most, and about which small ones get
_DIGITS = 4
_WIDE = 1.7  # times as wide as high, from which on pictures get more room
_LONG = 60  # letters of an answer, from which on it is set smaller


def card(
    label: str,
    text: str,
    answer: Answer | None = None,
    picture: str = "",
    size: tuple[int, int] = (1, 1),
    unpruned: Answer | None = None,
    note: str = "",
) -> str:
    """One run: its name, its answer so far, and, once it is done, what it kept.

    Args:
        label: the method, or `UNPRUNED`.
        text: the answer so far.
        answer: the run, once it is done.
        picture: what the model saw, by `data_url`.
        size: width and height of it.
        unpruned: the run with all tokens, which the answer is compared with.
        note: what to know of how the method runs on this model.
    """
    report = None if answer is None else answer.report
    count = "" if report is None else _count(report)
    badge = ""
    if answer is not None and unpruned is not None and answer.label != UNPRUNED:
        same = agrees("exact", answer.text, unpruned.text)
        badge = f'<span class="fv-badge {"fv-same" if same else "fv-other"}">{_SAME if same else _OTHER}</span>'
    kind = " fv-long" if len(text) > _LONG else ""
    kind += " fv-wide" if size[0] > _WIDE * size[1] else ""
    said = html.escape(text) if text else "…" if answer is None else "(no answer)"
    drawn = "" if answer is None else _picture(answer, picture, size)
    busy = ' aria-busy="true"' if answer is None else ""
    return (
        f'<article class="fv-card{kind}" aria-label="{html.escape(label)}"{busy}>'
        f"<header>{mark(label)}<h3>{html.escape(label)}</h3>"
        f'<span class="fv-count">{count}</span></header>'
        f'<p class="fv-answer">{said}{badge}</p>{drawn}{_note(note)}</article>'
    )


_SAME, _OTHER = "same answer", "another answer"


def failed_card(label: str, sentence: str) -> str:
    """The card of a run that was refused, or failed."""
    return (
        f'<article class="fv-card fv-failed" aria-label="{html.escape(label)}">'
        f"<header>{mark(label)}<h3>{html.escape(label)}</h3></header>"
        f'<p class="fv-refusal" role="alert">{html.escape(sentence)}</p></article>'
    )


def _note(note: str) -> str:
    return f'<p class="fv-note">{html.escape(note)}</p>' if note else ""


def _count(report: Report) -> str:
    if report.tokens == report.tokens_before:
        return f"{report.tokens} tokens"
    return f"{report.tokens} of {report.tokens_before} tokens"


def data_url(picture: Image.Image) -> tuple[str, tuple[int, int]]:
    """A picture for the page, scaled to a moderate size, and the width and height that it has there."""
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if scale < 1:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if scale < 1:
        picture.save(stream, "JPEG", quality=88)
    else:  # a small one goes as it is; the browser enlarges it
        picture.save(stream, "PNG")
    kind = "jpeg" if scale < 1 else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}", size


def _picture(answer: Answer, picture: str, size: tuple[int, int]) -> str:
    cells = cells_of(answer, size)
    said = describe(cells, answer.label)
    data = html.escape(json.dumps(cells, separators=(",", ":")), quote=True)
    name = html.escape(answer.label)
    return (
        f'<figure class="fv-picture" tabindex="0" role="application" aria-roledescription="picture of tokens" '
        f'aria-label="{html.escape(said)} Arrow keys go from token to token." data-label="{name}" data-cells="{data}">'
        f'<div class="fv-frame" style="aspect-ratio:{size[0]}/{size[1]}">'
        f'<img src="{picture}" alt="The picture as the model sees it, with what {name} keeps of it."></div>'
        '<figcaption class="fv-cell" aria-live="polite"></figcaption></figure>'
    )


def cells_of(answer: Answer, size: tuple[int, int]) -> dict[str, Any]:
    """The numbers that the page draws a run from, as JSON data, each list in raster order of the whole picture.

    Returns:
        ``rows``, ``columns``; ``kept``: the numbers of the kept cells; ``rank``: of every cell, 0 for dropped ones;
        ``one_by_one``: whether ranks are an order of picks; ``score``: of every cell, None where there is none, or None
        altogether; ``dropped``: of every cell the layer that it was left out of, -2 for those that stay; ``target``: of
        every cell the one that it was merged into, or None altogether; ``stages``; ``small``: in words what was kept of
        the whole in small, for a picture that was cut into tiles.
    """
    images = answer.report.images
    whole = TiledPicture.of(len(images), images[0].grid, size)
    kept = whole.join([image.kept.cpu() for image in images])
    cells: dict[str, Any] = {
        "rows": whole.grid.rows,
        "columns": whole.grid.columns,
        "kept": kept.nonzero()[:, 0].tolist(),
        "rank": None,
        "one_by_one": False,
        "score": None,
        "dropped": None,
        "target": None,
        "stages": [],
        "small": "",
    }
    if len(images) > 1:
        small = images[-1]
        cells["small"] = f"{small.tokens} of {small.tokens_before} tokens of the whole in small"
    known = [one for one in answer.picks if one is not None]
    if known:
        filled = [
            _all_kept(image.tokens_before) if one is None else one
            for one, image in zip(answer.picks, images, strict=True)
        ]
        cells["rank"] = whole.join([one.rank for one in filled]).tolist()
        cells["dropped"] = whole.join([one.dropped for one in filled]).tolist()
        cells["one_by_one"] = len(images) == 1 and known[0].one_by_one
        cells["stages"] = list(known[0].layers)
        if all(one.scores is not None for one in filled):
            scores = whole.join([one.scores for one in filled if one.scores is not None])
            cells["score"] = [_short(score) for score in scores.tolist()]
    target = whole.join_merges(answer.targets, [image.kept.cpu() for image in images])
    if target is not None:
        cells["target"] = target.tolist()
    return cells


def _all_kept(tokens: int) -> Picks:
    stays: Tensor = torch.full((tokens,), STAYS)
    return Picks(torch.arange(1, tokens + 1), False, None, stays, ())


def _short(score: float) -> float | None:
    return float(f"{score:.{_DIGITS}g}") if math.isfinite(score) else None


def describe(cells: dict[str, Any], label: str) -> str:
    """A picture of tokens in words, for those who do not see it: where the kept ones lie."""
    rows, columns = cells["rows"], cells["columns"]
    total, kept = rows * columns, cells["kept"]
    if len(kept) == total:
        return f"{label}: all {total} tokens, in {rows} rows and {columns} columns."
    thirds = [0] * 9
    for cell in kept:
        row, column = divmod(cell, columns)
        thirds[3 * (3 * row // rows) + 3 * column // columns] += 1
    most = sorted(range(9), key=lambda third: -thirds[third])[:2]
    where = " and ".join(f"{_THIRDS[third]} ({thirds[third]})" for third in most if thirds[third])
    return f"{label} keeps {len(kept)} of {total} tokens, most of them in the {where}."


_THIRDS = (
    *("upper left", "upper middle", "upper right"),
    *("left", "centre", "right"),
    *("lower left", "lower middle", "lower right"),
)

Row = tuple[str, str, Callable[[Answer], float], str]
ROWS: tuple[Row, ...] = (  # what the columns of the table are
    ("Visual tokens", "", lambda one: one.report.tokens, ".0f"),
    ("Mean over layers", "", lambda one: one.report.average_visual_tokens, ".4g"),
    ("FLOPs", "G", lambda one: one.report.flops / 1e9, ".3g"),
    ("KV cache", "MB", lambda one: one.report.kv_bytes / 1e6, ".3g"),
    ("Encoder", "ms", lambda one: one.report.encoder_seconds * 1e3, ".1f"),
    ("Selection", "ms", lambda one: one.report.selection_seconds * 1e3, ".1f"),
    ("LLM prefill", "ms", lambda one: one.report.prefill_seconds * 1e3, ".1f"),
    ("Whole answer", "ms", lambda one: one.seconds * 1e3, ".1f"),
)


def table(answers: Sequence[Answer]) -> str:
    """What each run cost, with the share that is left of the run with all tokens, which comes first."""
    if not answers:
        return ""
    heads = "".join(
        f'<th scope="col">{name}{f"<small>{unit}</small>" if unit else ""}</th>' for name, unit, _, _ in ROWS
    )
    full = next((one for one in answers if one.label == UNPRUNED), None)
    body = "".join(_row(one, full) for one in answers)
    return (
        '<section class="fv-costs" aria-labelledby="fv-costs-title"><h2 id="fv-costs-title">What it costs</h2>'
        '<div class="fv-scroll" tabindex="0" role="region" aria-labelledby="fv-costs-title"><table>'
        f'<thead><tr><th scope="col">Method</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        "<p class='fv-note'>Tokens, FLOPs and the KV cache are of the prefill, vision encoder included. Milliseconds "
        "are of this run on this machine.</p></section>"
    )


def _row(answer: Answer, full: Answer | None) -> str:
    cells = []
    for _, _, read, shown in ROWS:
        value = read(answer)
        share = ""
        if full is not None and answer is not full and (before := read(full)):
            share = f"<small>{value / before:.0%}</small>"
        cells.append(f"<td>{value:{shown}}{share}</td>")
    return f'<tr><th scope="row">{mark(answer.label)}{html.escape(answer.label)}</th>{"".join(cells)}</tr>'
