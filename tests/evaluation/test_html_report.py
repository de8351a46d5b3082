"""The report as one HTML file: what is embedded against the results, and that nothing of it can act as markup."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.test_report import made, with_downsampling
from foveate.data.samples import Sample
from foveate.evaluation import html_report
from foveate.evaluation.html_report import PAGE, build_html, embed, join_tiles, summarize, write_html
from foveate.evaluation.inference import pack_mask, unpack_mask
from foveate.evaluation.palette import style_of
from foveate.evaluation.report import Report
from foveate.evaluation.results import Results
from foveate.evaluation.runs import Run
from foveate.files import is_marked
from foveate.tokens import Grid

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<!-- <script>",
    "\"quotes\" 'and' `ticks` \\ ${window.hacked = 1}",
    "<img src=x onerror='window.hacked = 1'>",
    "line\u2028separator\u2029and\x00control",
    "&lt;b&gt; & <b>bold</b>",
)
GRID = Grid(3, 5)


def with_answers() -> Results:
    """Results whose questions and answers are hostile, with kept tokens drawn by chance."""
    rng = np.random.default_rng(0)
    results = made()
    count = len(results.samples)
    samples = [
        one | {"question": HOSTILE[n % len(HOSTILE)], "answers": ["a", "b"]} for n, one in enumerate(results.samples)
    ]
    samples[0]["family"] = "</script>"
    runs = [
        run | {"answers": [HOSTILE[int(k)] for k in rng.integers(len(HOSTILE), size=count)]} for run in results.runs
    ]
    kept = {
        Run(run["label"], run["keep"], seed=run["seed"]).key: [
            (pack_mask(GRID, torch.from_numpy(rng.random(15) < 0.3)),) for _ in range(count)
        ]
        for run in runs
        if run["label"] != "blind"
    }
    return dataclasses.replace(results, samples=samples, runs=runs, kept=kept)


def with_pictures(results: Results) -> list[Sample]:
    """Three questions about each picture; the pictures of each are one object."""
    pictures: dict[int, Image.Image] = {}
    for one in results.samples:
        number = one["image"]
        pictures.setdefault(number, Image.new("RGB", (50, 30), (number, 100, 200)))
    return [Sample(one["id"], one["question"], ("a",), (pictures[one["image"]],)) for one in results.samples]


class Reader(HTMLParser):
    """Every element with its attributes, and the contents of scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self._open: str | None = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs).get("id")
            self.scripts.setdefault(self._open, "")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[self._open] += data

    def data(self, name: str) -> Any:
        return json.loads(self.scripts[name])


@pytest.fixture(scope="module")
def results() -> Results:
    return with_answers()


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return build_html(Report(results), with_pictures(results))


@pytest.fixture(scope="module")
def page(text: str) -> Reader:
    return Reader(text)


def test_questions_and_answers_are_those_of_the_results(results: Results, page: Reader) -> None:
    data = page.data("questions")
    texts = data["texts"]
    assert len(set(texts)) == len(texts) and data["all"] == len(data["samples"]) == len(results.samples)
    for one, given in zip(data["samples"], results.samples, strict=True):
        assert (one["id"], one["metric"]) == (given["id"], given["metric"])
        assert texts[one["question"]] == given["question"]
        assert [texts[n] for n in one["truth"]] == given["answers"]
        assert data["families"][one["family"]] == given["family"]
    for one, run in zip(data["runs"], results.runs, strict=True):
        assert (one["label"], one["keep"], one["seed"]) == (run["label"], run["keep"], run["seed"])
        assert [texts[n] for n in one["answers"]] == run["answers"]
        assert [int(digit) for digit in one["right"]] == run["right"]


def test_figures_are_those_of_the_report(results: Results, page: Reader) -> None:
    report, summary = Report(results), page.data("summary")
    assert summary["columns"] == list(report.bootstrap.columns) and summary["keeps"] == report.keeps
    assert [(row["label"], row["keep"]) for row in summary["rows"]] == [(row.label, row.keep) for row in report.rows]
    for place, row in enumerate(summary["rows"]):
        for column, (value, low, high) in zip(summary["columns"], row["scores"], strict=True):
            score = report.bootstrap.score(place, column)
            exact = [100 * one for one in (score.value, score.low, score.high)]
            found = [math.nan if one is None else one for one in (value, low, high)]  # one image has no interval
            assert found == pytest.approx(exact, abs=1e-3, nan_ok=True)
        assert row["tokens"] == report.rows[place].costs["visual_tokens"]
        assert row["ms"] == pytest.approx(1e3 * report.rows[place].seconds)
    rows = {(row["label"], row["keep"]): row for row in summary["rows"]}
    difference = report.bootstrap.difference(*(report.at(name, "5%") or 0 for name in ("divprune", "idpruner")))
    assert rows["divprune", "5%"]["minus"][0] == pytest.approx(100 * difference.value, abs=1e-3)
    assert rows["divprune", "5%"]["failing"] == {} and "down-sampling was not run" in summary["failing_note"]
    assert rows["idpruner", "5%"]["minus"] is None and rows["unpruned", ""]["kept"][0] == 100
    styles = {one["name"]: (one["colour"], one["marker"]) for one in summary["labels"]}
    assert styles == {row.label: (style_of(row.label).colour, style_of(row.label).marker) for row in report.rows}
    assert summary["refused"][0] == {"method": "evs", "keep": "25%", "why": "images only."}


def test_what_was_kept_is_there_for_each_run_and_question(results: Results, page: Reader) -> None:
    masks = page.data("masks")
    for run, found in zip(results.runs, masks, strict=True):
        kept = results.kept.get(Run(run["label"], run["keep"], seed=run["seed"]).key)
        assert found == (None if kept is None else [list(one) for one in kept])


def test_each_picture_is_there_once(results: Results, page: Reader) -> None:
    shown = [one["pictures"] for one in page.data("questions")["samples"]]
    assert shown == [[one["image"]] for one in results.samples]
    pictures = {name: content for name, content in page.scripts.items() if (name or "").startswith("picture-")}
    assert len(pictures) == len({one["image"] for one in results.samples})
    for number in (0, 7, 39):
        kind, _, content = pictures[f"picture-{number}"].partition(",")
        assert kind == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.size == (50, 30)
        assert np.abs(np.asarray(image).astype(int).mean((0, 1)) - (number, 100, 200)).max() < 5


def test_hostile_texts_are_data(text: str, page: Reader) -> None:
    names = [attributes.get("id") for tag, attributes in page.elements if tag == "script"]
    others = [name for name in names if not (name or "").startswith("picture-")]
    assert sorted(map(str, others)) == ["None", "masks", "questions", "summary"]  # None: the page's own script
    assert set(HOSTILE) <= set(page.data("questions")["texts"])
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "\u2028" not in text and "\u2029" not in text
    model = dataclasses.replace(with_answers(), configuration=made().configuration | {"model": "<b>&"})
    assert "Pruning report: &lt;b&gt;&amp;, toys</title>" in build_html(Report(model))
    assert json.loads(embed({"a": HOSTILE})) == {"a": list(HOSTILE)}
    with pytest.raises(ValueError):
        embed(float("nan"))


def test_nothing_is_fetched(text: str, page: Reader) -> None:
    policy = next(one["content"] for tag, one in page.elements if tag == "meta" and "http-equiv" in one)
    assert str(policy).startswith("default-src 'none';") and "http" not in str(policy)
    addresses = [one[key] for _, one in page.elements for key in ("src", "href") if key in one]
    assert all(str(one).startswith("#") for one in addresses)
    own = text.replace(page.scripts["questions"], "")
    assert set(re.findall(r"https?://[^\s\"'<>`]*", own)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|importScripts|innerHTML|eval)\b|@import|url\(", own)


def test_the_same_results_give_the_same_bytes(results: Results, text: str, tmp_path: Path) -> None:
    path = write_html(Report(results), tmp_path, with_pictures(results))
    assert path == tmp_path / PAGE and path.read_text(encoding="utf-8") == text
    assert is_marked(path)


def test_results_of_an_older_foveate_have_no_masks_and_no_pictures() -> None:
    page = Reader(build_html(Report(made(times=False))))
    assert page.data("masks") == [None] * len(made().runs)
    assert all(one["pictures"] == [] for one in page.data("questions")["samples"])
    assert all(row["ms"] is None for row in page.data("summary")["rows"])


def test_a_file_that_grows_too_large_keeps_what_pruning_lost(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {(run["label"], run["keep"]): run["right"] for run in results.runs}
    methods = [right[one] for one in right if one[0] in ("idpruner", "divprune", "fastv")]
    lost = [n for n, full in enumerate(right["unpruned", ""]) if full and not all(one[n] for one in methods)]
    runs = len(results.kept)
    monkeypatch.setattr(html_report, "MASKS_LIMIT", len(lost) * runs * 15)
    monkeypatch.setattr(html_report, "QUESTIONS_LIMIT", len(lost) + 5)
    monkeypatch.setattr(html_report, "PICTURES_LIMIT", 2000)
    page = Reader(build_html(Report(results), with_pictures(results)))
    data, masks = page.data("questions"), page.data("masks")
    assert data["all"] == 120 and len(data["samples"]) == len(lost) + 5
    places = [int(one["id"]) for one in data["samples"]]
    assert places == sorted(places) and set(lost) <= set(places)
    shown = {place for place, mask in zip(places, masks[0], strict=True) if mask}
    assert shown and shown <= set(lost)
    inside = [content for name, content in page.scripts.items() if (name or "").startswith("picture-")]
    assert 0 < sum(map(len, inside)) <= 2000
    assert {n for one in data["samples"] for n in one["pictures"]} == set(range(len(inside)))


def test_masks_are_packed_and_unpacked() -> None:
    kept = torch.tensor([True, False, False, False, True, False, False, False, True, True])
    assert pack_mask(Grid(2, 5), kept) == "2x5x1:88c0"
    for grid in (Grid(1, 1), Grid(2, 5), Grid(4, 4), Grid(3, 3, frames=3)):
        mask = torch.rand(len(grid)) < 0.5
        found, bits = unpack_mask(pack_mask(grid, mask))
        assert found == grid and np.array_equal(bits, mask.numpy())
    with pytest.raises(ValueError, match="8 bits for 10 tokens"):
        unpack_mask("2x5x1:88")


def test_tiles_are_joined_as_they_lie() -> None:
    cells = [torch.zeros(4, dtype=torch.bool) for _ in range(3)]
    cells[0][1] = cells[1][2] = cells[2][0] = True  # two tiles side by side, and the whole in small
    sample = Sample("1", "q", ("a",), (Image.new("RGB", (200, 100)),))
    grid, bits = unpack_mask(*join_tiles([pack_mask(Grid(2, 2), one) for one in cells], sample))
    assert grid == Grid(2, 4) and bits.reshape(2, 4).tolist() == [
        [False, True, False, False],
        [False, False, True, False],
    ]
    assert join_tiles(["2x2x1:f0"], sample) == ["2x2x1:f0"]
    two = dataclasses.replace(sample, pictures=sample.pictures * 2)
    assert join_tiles(["2x2x1:f0"] * 2, two) == ["2x2x1:f0"] * 2
    assert join_tiles(["2x2x1:f0"] * 6, two) == []  # whose tiles these are is not known


def test_a_picture_is_shown_as_the_model_sees_it(tmp_path: Path) -> None:
    from foveate.testbed import load_shipped

    picture = tmp_path / "wide.png"
    Image.new("RGB", (400, 200), (10, 200, 30)).save(picture)
    processor = load_shipped()[1].image_processor
    content = html_report.encode_picture(picture, processor, 320, 82)
    image = Image.open(io.BytesIO(base64.b64decode(str(content).partition(",")[2])))
    assert image.width == image.height <= 320  # padded to a square, as this processor does
    picture.unlink()
    assert html_report.encode_picture(picture, processor, 320, 82) is None


def test_the_page_tells_how_right_methods_are_where_down_sampling_fails() -> None:
    report = Report(with_downsampling())
    summary = summarize(report)
    assert summary["failing"] == {"25%": report.failing("25%").questions, "5%": 0}
    for place, row in enumerate(summary["rows"]):
        score = report.failing_score(place, "25%")
        assert (score is None) == (row["keep"] == "5%")
        if score is not None:
            told = [100 * one for one in (score.value, score.low, score.high)]
            assert row["failing"] == {"25%": pytest.approx(told, abs=1e-3)}
