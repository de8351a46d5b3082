"""The documentation is true: its links lead somewhere, its code runs, and it names only commands that exist."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from foveate.catalog import facts_of
from foveate.cli import app
from foveate.methods import method_names
from foveate.models import supported_models

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WRITTEN = [page for page in PAGES if "leaderboard" not in page.parts and page.name != "leaderboard.md"]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return runpy.run_path(str(ROOT / "scripts" / "docs_pages.py"))["pages"]()


# -- the pages that are written from the code


def test_every_method_has_a_page(generated: dict[str, str]) -> None:
    own = [name for name in method_names() if f"methods/{name}.md" in generated]
    assert len(own) == len(generated) - 1 >= 39
    for name in own:
        page, facts = generated[f"methods/{name}.md"], facts_of(name)
        assert page.startswith(f"# {name}\n") and facts.summary in page
        assert all(value.replace("|", "\\|") in page for value in facts.facts.values())
        assert all(f"| `{field.name}` |" in page for field in facts.hyperparameters)
        assert all(family in page for settings in facts.published for family in settings.families)
        assert generated["methods/index.md"].count(f"[{name}]({name}.md)") == 1


# -- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path, generated: dict[str, str]) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    made = {(DOCS / path).resolve() for path in generated}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists() or path in made, f"{name_of(page)}: {target} is not there"


# -- files

ENDS = "py|sh|npz|toml|yml"
YOURS = {"qwen.py", "offline.py"}  # which the quickstart has you save
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("src", "tests", "benchmarks", "scripts", "examples", "docs", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
) + [path.name for path in ROOT.iterdir() if path.is_file()]


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """By their whole path, or by its end, as pages of contributors name what lies in ``src/foveate``."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.<>*-])((?:[\w.-]+/)*[\w-]+\.(?:{ENDS}))\b(?:::(\w+))?", text)
    named += re.findall(r"\b((?:tests|benchmarks|scripts|examples|results|docs)/[\w/.-]+\.md)\b()", text)
    for path, test in named:
        found = [one for one in FILES if f"/{one}".endswith(f"/{path}")] or [path] * (ROOT / path).exists()
        assert found or path in YOURS, f"{name_of(page)}: there is no {path}"
        if test:
            assert f"def {test}(" in (ROOT / found[0]).read_text(encoding="utf-8"), f"{name_of(page)}: {path}::{test}"


def blocks_below(heading: str) -> str:
    """The first block of code below a heading of the page on the architecture."""
    _, _, rest = (DOCS / "contributing" / "architecture.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return FENCED.findall(rest)[0][1]


def test_the_house_is_drawn_as_it_is() -> None:
    """Whatever the tree names exists in the folder below which it stands, and no room is missing."""
    _, *lines = blocks_below("The house").splitlines()
    drawn, folders = set(), {0: Path("src/foveate")}
    for line in lines:
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        if depth > 4:
            continue  # goes on with the line above
        path = folders[depth - 2] / name
        assert (ROOT / path).is_dir() if name.endswith("/") else (ROOT / path).is_file(), path
        folders[depth] = path
        drawn.add(str(path))
    house = ROOT / "src" / "foveate"
    rooms = [path for path in house.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    rooms += (house / "runtime").glob("[!_]*.py")
    missing = {str(path.relative_to(ROOT)) for path in rooms} - drawn
    assert missing == {"src/foveate/__main__.py", "src/foveate/version.py"}


def test_the_seams_are_listed() -> None:
    text = (DOCS / "contributing" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
    there = {path.name for path in (ROOT / "src" / "foveate" / "runtime" / "seams").glob("[!_]*.py")} - {"base.py"}
    assert sorted(listed) == sorted(there)


def test_the_arrows_are_those_that_lint_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert blocks_below("Arrows point down").split("\n")[:-1] == [row.replace("foveate.", "") for row in layers]


# -- commands


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by its words, without ``foveate`` itself."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        if not hasattr(command, "commands"):
            found[words] = command

    walk(typer.main.get_command(app), ())
    return found


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def called(page: Path) -> Iterator[str]:
    """What a page shows of the command line: lines of code blocks, and spans of code."""
    text = page.read_text(encoding="utf-8")
    for _, block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|-m )foveate (?![-=])(.*)", line.split(" #")[0])
            if match:
                yield match[1]
    for span in SPAN.findall(FENCED.sub("", text)):
        if span.startswith("foveate "):
            yield span.removeprefix("foveate ")


HELP = {"-h", "--help"}


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    known = commands()
    for line in called(page):
        words = shlex.split(line.replace("$asked", ""))
        if words[0].startswith("-"):
            assert words[0] in options(typer.main.get_command(app)) | HELP, f"{name_of(page)}: foveate {line}"
            continue
        name = next((name for name in known if tuple(words[: len(name)]) == name), None)
        assert name is not None, f"{name_of(page)}: foveate {line}"
        for word in words[len(name) :]:
            option = word.partition("=")[0]
            if re.match(r"--?[a-z]", option):
                assert option in options(known[name]) | HELP, f"{name_of(page)}: foveate {line}"


@pytest.mark.parametrize(
    "page", ["quickstart.md", "guides/evaluate.md", "guides/train_a_scorer.md", "guides/train_evidence.md"]
)
def test_options_alone_exist(page: str) -> None:
    known = set().union(*(options(command) for command in commands().values()))
    spans = SPAN.findall(FENCED.sub("", (DOCS / page).read_text(encoding="utf-8")))
    named = {span.split()[0] for span in spans if span.startswith("--")}
    assert named <= known


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in WRITTEN:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)
        assert set(named) <= targets, f"{name_of(page)}: {set(named) - targets}"


# -- code


def python_blocks(page: Path) -> list[str]:
    return [block for language, block in FENCED.findall(page.read_text(encoding="utf-8")) if language == "python"]


def run_blocks(blocks: list[str]) -> dict[str, Any]:
    """Run code one after the other in one namespace."""
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "<docs>", "exec"), namespace)
    return namespace


def test_the_readme_names_every_class_that_is_supported() -> None:
    text = (ROOT / "README.md").read_text()
    assert [model.class_name for model in supported_models() if f"`{model.class_name}`" not in text] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=name_of)
def test_the_first_example_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small model that comes along, of another architecture, in the place of the one that is downloaded."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 96), "red").save("photo.jpg")
    code = python_blocks(page)[0]
    assert '"Qwen/Qwen2.5-VL-3B-Instruct"' in code
    code = code.replace('"Qwen/Qwen2.5-VL-3B-Instruct"', "shipped").replace("Qwen2_5_VLFor", "LlavaFor")
    result = run_blocks(
        ["from foveate.testbed import shipped_models\nshipped = shipped_models()['testbed-llava']", code]
    )
    assert result["pruning"].report().tokens < result["pruning"].report().tokens_before


def test_the_quickstart_runs_offline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in python_blocks(DOCS / "quickstart.md")]
    start = next(i for i, block in enumerate(blocks) if "shipped_models" in block)
    run_blocks(blocks[start:])
    said = capsys.readouterr().out
    assert said.startswith("red\n1 image: 196 -> 20 visual tokens")


@pytest.mark.parametrize(
    "page",
    [
        "index.md",
        "concepts.md",
        "companions/ippro.md",
        "companions/symbiosis.md",
        "guides/choose_a_method.md",
        "guides/fine_tune.md",
        "guides/guided.md",
        "guides/conversations.md",
        "guides/threads_and_servers.md",
        "guides/quantised_and_spread.md",
        "reference/data.md",
    ],
)
def test_the_guides_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model of the quickstart; what only other models can do is left out."""
    quickstart = next(block for block in python_blocks(DOCS / "quickstart.md") if "shipped_models" in block)
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in python_blocks(DOCS / page) if "pixelprune" not in block]
    assert blocks
    result = run_blocks([quickstart, *blocks])
    if page == "guides/threads_and_servers.md":
        assert result["handle"](result["inputs"]).shape[0] == 1
        result["pruning"].detach()
