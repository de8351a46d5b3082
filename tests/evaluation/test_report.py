"""Tables, plots and the leaderboard, of results made by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.app.marks import SHAPES
from foveate.evaluation import plots
from foveate.evaluation.end_labels import spread
from foveate.evaluation.inference import COSTS, TIMES
from foveate.evaluation.leaderboard import write_leaderboard
from foveate.evaluation.palette import COLOURS, MARKERS, STYLES, style_of
from foveate.evaluation.paper_results import PAPER_TABLES
from foveate.evaluation.plots import (
    FIGURES,
    ReportError,
    accuracy_limits,
    coinciding,
    draw,
    strong_labels,
    write_report,
)
from foveate.evaluation.report import Report, percent
from foveate.evaluation.results import Results
from foveate.evaluation.runs import BASELINES, REFERENCES, Run
from foveate.evaluation.statistics import Estimate
from foveate.evaluation.suites import EvaluationError
from foveate.files import is_marked
from foveate.methods import method_names

QUESTIONS, IMAGES = 120, 40
CHANCES = {
    ("unpruned", "", None): 0.9,
    ("blind", "", None): 0.2,
    **{("random", keep, seed): 0.5 for keep in ("25%", "5%") for seed in (0, 1)},
    **{("oracle", keep, None): 0.9 for keep in ("25%", "5%")},
    ("divprune", "25%", None): 0.7,
    ("idpruner", "25%", None): 0.85,
    ("divprune", "5%", None): 0.7,
    ("idpruner", "5%", None): 0.6,
    ("fastv", "5%", None): 0.55,
}


def made(times: bool = True) -> Results:
    """Results by chance; costs and times are told by the place of a run."""
    rng = np.random.default_rng(0)
    difficulty = rng.random(QUESTIONS)  # a question is as hard for one run as for the other
    runs = [
        {
            "label": label,
            "keep": keep,
            "seed": seed,
            "answers": ["?"] * QUESTIONS,
            "right": [int(one < chance) for one in difficulty],
            "costs": dict.fromkeys(COSTS, 1000.0 * (len(CHANCES) - place)),
        }
        for place, ((label, keep, seed), chance) in enumerate(CHANCES.items())
    ]
    samples = [
        {
            "id": str(n),
            "family": ("shapes", "words")[n % 2],
            "image": n // 3,
            "question": "?",
            "answers": ["!"],
            "metric": "exact",
        }
        for n in range(QUESTIONS)
    ]
    configuration = {"model": "toy", "suite": "toys", "about": "Toys | drawn.", "seed": 0}
    keys = [Run(label, keep, seed=seed).key for label, keep, seed in CHANCES]
    measured = {key: dict.fromkeys(TIMES, 0.001 * (n + 1)) for n, key in enumerate(keys)} if times else {}
    refused = [{"label": "evs", "keep": keep, "why": "images only."} for keep in ("25%", "5%")]
    return Results(configuration, samples, runs, refused, measured, "here")


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(made())


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_rows_are_means_over_seeds(report: Report) -> None:
    right = {(run["label"], run["keep"], run["seed"]): np.array(run["right"]) for run in report.results.runs}
    row = next(row for row in report.rows if (row.label, row.keep) == ("random", "25%"))
    assert row.seeds == 2
    assert np.array_equal(row.scores, (right["random", "25%", 0] + right["random", "25%", 1]) / 2)
    assert row.costs["kv_bytes"] == 10500 and row.times["select"] == pytest.approx(0.0035)


def test_the_table_says_what_is_so(report: Report) -> None:
    head, ruler, *rows = cells(report.accuracy("25%"))
    assert head[1:5] == ["visual tokens", "shapes", "words", "macro"] and head[-1] == "minus idpruner"
    assert ruler[:2] == ["---", "---:"]
    assert [row[0] for row in rows] == [
        "*unpruned*",
        "*blind*",
        "*oracle*",
        "idpruner",
        "divprune",
        "*random* (2 seeds)",
    ]
    right = {(run["label"], run["keep"]): np.array(run["right"]) for run in report.results.runs}
    family = np.arange(QUESTIONS) % 2

    def macro(label: str, keep: str = "25%") -> float:
        return float(np.mean([100 * right[label, keep][family == one].mean() for one in (0, 1)]))

    divprune = rows[4]
    assert divprune[2] == f"{100 * right['divprune', '25%'][family == 0].mean():.1f}"
    assert divprune[4].startswith(f"{macro('divprune'):.1f} [")
    assert divprune[5].startswith(f"{100 * macro('divprune') / macro('unpruned', ''):.1f} [")
    blind = macro("blind", "")
    above = 100 * (macro("divprune") - blind) / (macro("unpruned", "") - blind)
    assert divprune[6].startswith(f"{above:.1f} [")
    assert divprune[8].startswith(f"**{macro('divprune') - macro('idpruner'):+.1f}** [")
    assert rows[3][8] == "" and not rows[0][8].startswith("**-")


def with_downsampling() -> Results:
    """The same, with a smaller picture at 25 %, right about the easier questions and, by luck, a hard one."""
    results = made()
    difficulty = np.random.default_rng(0).random(QUESTIONS)
    right = (difficulty < 0.4).astype(int)
    right[int(difficulty.argmax())] = 1
    run = results.runs[-1] | {"label": "downsample", "keep": "25%", "right": right.tolist()}
    refused = [*results.refused, {"label": "downsample", "keep": "5%", "why": "tiles."}]
    return dataclasses.replace(results, runs=[*results.runs, run], refused=refused)


def test_methods_are_judged_where_down_sampling_fails() -> None:
    report = Report(with_downsampling())
    right = {(run["label"], run["keep"]): np.array(run["right"]) for run in report.results.runs}
    wrong = right["downsample", "25%"] == 0
    head, _, *rows = cells(report.accuracy("25%"))
    assert head[7] == f"where down-sampling fails ({wrong.sum()})" and head[8] == "minus idpruner"
    told = {row[0]: row[7] for row in rows}
    for label, keep in (("divprune", "25%"), ("idpruner", "25%"), ("unpruned", ""), ("blind", "")):
        name = f"*{label}*" if keep == "" else label
        assert told[name].startswith(f"{100 * right[label, keep][wrong].mean():.1f} [")
    assert told["*downsample*"] == "0.0 [0.0, 0.0]"
    images = sorted({n // 3 for n in np.flatnonzero(wrong)})
    low, high = (float(one) for one in re.findall(r"[\d.]+", told["divprune"])[1:])
    times = np.random.default_rng(1).multinomial(len(images), [1 / len(images)] * len(images), 4000)
    sums, sizes = (
        np.array([sum(values[n] for n in np.flatnonzero(wrong) if n // 3 == image) for image in images])
        for values in (right["divprune", "25%"], np.ones(QUESTIONS))
    )
    assert np.quantile(times @ sums / (times @ sizes), [0.025, 0.975]) * 100 == pytest.approx([low, high], abs=1.5)
    overview = dict(report.overview(intervals=False))
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d / –", overview["divprune"][3]) and overview["fastv"][3] == "– / –"
    assert report.failing_heading() == f"where down-sampling fails ({wrong.sum()} / –)"


def test_no_down_sampling_is_a_dash_and_a_reason() -> None:
    report = Report(with_downsampling())
    head, _, *rows = cells(report.accuracy("5%"))
    assert head[7] == "where down-sampling fails" and {row[7] for row in rows} == {"–"}
    assert "A dash at 5%: down-sampling could not run (tiles)." in report.text()
    assert "A dash at 25%, 5%: down-sampling was not run." in Report(made()).text()
    runs = [run | {"keep": "auto" if run["keep"] == "25%" else run["keep"]} for run in made().runs]
    assert "A dash at auto: the size of the smaller" in Report(dataclasses.replace(made(), runs=runs)).text()
    perfect = with_downsampling()
    perfect.runs[-1]["right"] = [1] * QUESTIONS
    assert "A dash at 25%: down-sampling answers every question rightly." in Report(perfect).text()


def test_budgets_may_be_given_in_any_order(report: Report) -> None:
    turned = Report(dataclasses.replace(report.results, runs=report.results.runs[::-1]))
    assert turned.keeps == report.keeps == ["25%", "5%"]
    assert turned.places("divprune") == [turned.at("divprune", "25%"), turned.at("divprune", "5%")]
    assert turned.overview(intervals=True)[3:] == report.overview(intervals=True)[3:]


def test_methods_without_results_at_a_budget_are_left_out(report: Report) -> None:
    assert "fastv" not in report.accuracy("25%") and "fastv" in report.accuracy("5%")
    overview = dict(report.overview(intervals=True))
    assert overview["fastv"][2] == "– / 1000" and overview["divprune"][2] == "5000 / 3000"
    assert overview["fastv"][0] == "" and re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", overview["fastv"][1])
    assert list(overview)[:3] == ["*unpruned*", "*blind*", "*oracle*"]
    assert list(overview)[3:] == ["divprune", "idpruner", "fastv", "*random*"]  # by the smallest budget
    assert "±" in dict(report.overview(intervals=False))["random"][0]


def test_who_is_compared_with(report: Report) -> None:
    assert report.reference == "idpruner"
    assert "minus divprune" in Report(report.results, "divprune").accuracy("5%")
    with pytest.raises(EvaluationError, match="'evs', which has no results"):
        Report(report.results, "evs")
    runs = [run for run in made().runs if run["label"] in ("unpruned", "blind", "random")]
    alone = Report(dataclasses.replace(made(), runs=runs))
    assert alone.reference is None and "minus" not in alone.text()


def test_the_whole_text(report: Report) -> None:
    text = report.text([Path("somewhere/accuracy_tokens.png")])
    assert "120 questions about 40 images" in text and "too few" not in text
    assert "| evs | 25%, 5% | images only. |" in text
    assert "![accuracy tokens](accuracy_tokens.png)" in text
    assert "encode ms" in text and "encode ms" not in Report(made(times=False)).text()
    few = dataclasses.replace(made(), samples=[sample | {"image": 0} for sample in made().samples])
    assert "1 images are too few" in Report(few).text() and "nan" in Report(few).text()


def test_plots_are_drawn(report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path)
    assert path.read_text() == report.text(
        [tmp_path / f"{n}.png" for n in ("accuracy_tokens", "accuracy_time", "families")]
    )
    for name in ("accuracy_tokens", "accuracy_time", "families"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert picture.shape[1] > 800
        blue = (picture.astype(int) - (0, 0x72, 0xB2)) ** 2
        assert (blue.sum(-1) < 100).sum() > 200  # idpruner's line
    untimed = tmp_path / "untimed"
    untimed.mkdir()
    write_report(Report(made(times=False)), untimed)
    assert not (untimed / "accuracy_time.png").exists() and (untimed / "families.png").exists()


def with_others(number: int = 9) -> Results:
    results = made()
    extra = [
        run | {"label": f"m{n}", "right": [int(n > i % 12) for i in range(QUESTIONS)]}
        for n in range(number)
        for run in results.runs
        if run["label"] == "idpruner"
    ]
    return dataclasses.replace(results, runs=results.runs + extra)


def test_the_best_methods_stand_out() -> None:
    strong = strong_labels(Report(with_others()))
    assert strong[0] == "idpruner" and {"random", "oracle", "m8", "m7"} <= set(strong) and "m0" not in strong
    assert len(set(strong) - {"random", "oracle"}) == 6


def test_every_method_has_its_own_colour_and_marker_in_all_figures() -> None:
    assert set(method_names()) <= set(STYLES)
    pairs = [(one.colour, one.marker) for one in STYLES.values()]
    assert len(set(pairs)) == len(pairs)
    greys = {STYLES[label].colour for label in (*BASELINES, *REFERENCES, "oracle")}
    assert all(len({one[1:3], one[3:5], one[5:7]}) == 1 for one in greys)
    assert len({(STYLES[label].marker, STYLES[label].dash) for label in BASELINES}) == len(BASELINES)
    mine = style_of("mine")
    assert mine == style_of("mine") and mine.dash and mine.colour in COLOURS and mine.marker in MARKERS
    moved = style_of("fastv@4")
    assert (moved.colour, moved.marker) == (STYLES["fastv"].colour, STYLES["fastv"].marker) and moved.dash


def texts(make: Callable[[Report, Any], object], report: Report) -> list[tuple[str, Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    make(report, figure)
    figure.canvas.draw()
    return [(one.get_text(), one.get_window_extent()) for axes in figure.axes for one in axes.texts]


def test_all_curves_are_named_and_no_name_lies_on_another() -> None:
    report = Report(with_others(20))
    for make in (plots._tokens, plots._time):
        named = texts(make, report)
        assert {name for name, _ in named} == {*report.labels, "unpruned", "blind"}
        for (_, one), (_, other) in itertools.combinations(named, 2):
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 + 1.5 or other.y1 <= one.y0 + 1.5


def test_names_stay_as_near_as_they_can() -> None:
    wanted, heights = np.array([0.5, 0.5, 0.9, 0.02]), np.full(4, 0.1)
    assert spread(wanted, heights) == pytest.approx([0.45, 0.55, 0.9, 0.05])
    full = spread(np.full(10, 0.3), np.full(10, 0.1))
    assert np.sort(full) == pytest.approx(np.arange(10) / 10 + 0.05)


def test_curves_that_coincide_are_told_apart() -> None:
    results = made()
    twin = [run | {"label": "twin"} for run in results.runs if run["label"] == "idpruner"]
    report = Report(dataclasses.replace(results, runs=results.runs + twin))
    assert ["idpruner", "twin"] in coinciding(report) and ["divprune"] in coinciding(report)
    one, other = (plots._line_style("idpruner", True, turn, 2) for turn in (0, 1))
    (start, (dash, gap)), (later, pattern) = one["linestyle"], other["linestyle"]
    assert pattern == (dash, gap) and dash == gap and (later - start) % (dash + gap) == dash  # one in the other's gaps
    assert one["markersize"] > other["markersize"] and one["markerfacecolor"] == "none"


def test_an_axis_of_zeros_spans_ten_points() -> None:
    for at in (0.0, 50.0, 100.0):
        low, high = accuracy_limits(at, at)
        assert high - low >= 10 and low < at < high and low >= -2 and high <= 103


def test_one_budget_is_drawn_as_points_with_intervals(report: Report) -> None:
    from matplotlib.figure import Figure

    runs = [run for run in report.results.runs if run["keep"] in ("", "5%")]
    alone, figure = Report(dataclasses.replace(report.results, runs=runs)), Figure()
    plots._tokens(alone, figure)
    (axes,) = figure.axes
    named = [tick.get_text() for tick in axes.get_yticklabels()]
    assert sorted(named) == sorted(alone.labels) and named[0] == "oracle"
    scores = [float(alone.bootstrap.point[alone.at(label, "5%"), -1]) for label in named]
    assert scores == sorted(scores, reverse=True)
    drawn = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert [drawn[row] for row in range(len(named))] == pytest.approx([100 * score for score in scores])
    assert {"unpruned", "blind"} <= {one.get_text() for one in axes.texts}
    assert len(axes.containers) == len(named)  # intervals


def test_formats(tmp_path: Path) -> None:
    report = Report(made(times=False))
    path = write_report(report, tmp_path, ["svg", "pdf"])
    assert "](families.svg)" in path.read_text() and ".pdf)" not in path.read_text()
    first = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert {*first} == {
        "report.md",
        *(f"{name}.{kind}" for name in (FIGURES[0], FIGURES[2]) for kind in ("svg", "pdf")),
    }
    assert first["families.svg"].startswith(b"<?xml") and first["families.pdf"].startswith(b"%PDF")
    assert all(is_marked(tmp_path / name) for name in first)
    draw(report, tmp_path, ["svg"])
    assert all((tmp_path / name).read_bytes() == content for name, content in first.items())
    with pytest.raises(ReportError, match="'jpg' of plots"):
        write_report(report, tmp_path, ["jpg"])


@pytest.mark.parametrize("missing", ["scipy", "matplotlib"])
def test_what_is_not_installed_is_a_sentence(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ReportError, match=r"foveate\[eval\]"):
        write_report(report, tmp_path)


def test_a_leaderboard_of_one_evaluation_is_told_where_its_folder_is(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.json").write_text("{}")
    with pytest.raises(
        EvaluationError,
        match=re.escape(f"one holds one evaluation; give the folder in which it and others are: {tmp_path}."),
    ):
        write_leaderboard(tmp_path / "one", tmp_path / "page.md")


def test_the_leaderboard(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "leaderboard.md"
    with pytest.raises(EvaluationError, match="there are no results"):
        write_leaderboard(tmp_path / "results", page)
    for name in ("b", "a"):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        made().save(folder)
    page.parent.mkdir()
    written = write_leaderboard(tmp_path / "results", page)
    assert written == [page, *(tmp_path / "docs" / "leaderboard" / name / "report.md" for name in "ab")]
    text = page.read_text()
    assert text.count("## Model toy, suite toys") == 2
    assert "in the folder `results/`" in text and "drawn scenes" not in text and "not Qwen2.5-VL-7B" not in text
    assert text.count("| toy | itself | 4 |") == 2 and text.count("| toy | toy | 4 | 25%: 1.00") == 1
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert (page.parent / link).is_file()
    assert all(one.title in text and one.source in text for one in PAPER_TABLES)


def test_the_committed_page_is_that_of_the_committed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", lambda report, folder, formats: [])  # the page is compared, not its plots
    root = Path(__file__).parents[2]
    write_leaderboard(root / "results", tmp_path / "leaderboard.md")
    assert "not Qwen2.5-VL-7B on photographs" in (tmp_path / "leaderboard.md").read_text()
    said = "docs/notes/leaderboard.md is out of date: run foveate leaderboard"
    assert (tmp_path / "leaderboard.md").read_text() == (root / "docs/notes/leaderboard.md").read_text(), said


def test_published_figures_are_of_methods_that_are_here() -> None:
    for one in PAPER_TABLES:
        assert all(len(row) == len(one.head) and row[0] in method_names() for row in one.rows)
        assert "arXiv" in one.source


def test_methods_whose_rule_changed_since_are_named() -> None:
    results = made()
    results.configuration["earlier_rules"] = ["dart", "eadp"]
    for tables in (True, False):
        assert "before you compare them: dart, eadp." in Report(results).preface(tables)
    assert "before you compare" not in Report(made()).preface()


def test_one_image_has_no_interval() -> None:
    assert percent(Estimate(0.5, float("nan"), float("nan"))) == "50.0"
    assert percent(Estimate(0.5, 0.25, 0.75)) == "50.0 [25.0, 75.0]"


def test_every_marker_is_drawn_on_pages_too() -> None:
    chart = (Path(plots.__file__).parent / "page" / "chart.js").read_text()
    shapes = chart.partition("const MARKS = {")[2].partition("\n};")[0]
    for marker in {style.marker for style in STYLES.values()}:
        assert marker in SHAPES and re.search(rf'^  "?{re.escape(marker)}"?: \(r\)', shapes, re.MULTILINE)
