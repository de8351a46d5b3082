"""The page in a browser, at the width of a desktop and of a phone, on the model that comes with foveate."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from cli.run_command import run
from foveate.app.desk import Answer, Desk
from foveate.app.drawing import cells_of
from foveate.app.page import MOST_METHODS, example_questions
from foveate.app.server import serving
from foveate.data.images import open_image
from foveate.data.loading import LoadedModel
from foveate.testbed import load_shipped, scenes
from foveate.testbed.shipped import FOLDER

pytestmark = pytest.mark.app
WIDTHS = {"desktop": (1360, 900), "phone": (390, 844)}
PATIENCE = 30_000  # milliseconds
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PICTURE = FOLDER / "00.png"
QUESTION = "How many red things are in the picture?"


@pytest.fixture(scope="module")
def session() -> LoadedModel:
    pytest.importorskip("gradio", reason="needs gradio: make test-app")
    pytest.importorskip("playwright", reason="needs playwright: make test-app")
    return LoadedModel(*load_shipped())


@pytest.fixture(scope="module")
def url(session: LoadedModel) -> Iterator[str]:
    with serving(session, port=0) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Visitor:
    """Somebody with the page open; whatever the page asks of other machines is refused and remembered."""

    def __init__(self, browser: Any, url: str, width: str) -> None:
        across, down = WIDTHS[width]
        self.context = browser.new_context(viewport={"width": across, "height": down}, reduced_motion="reduce")
        self.page = page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        page.route(lambda asked: not asked.startswith((url, "data:", "blob:")), self._refuse)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        page.goto(url)
        page.locator("[data-example='0']").wait_for()

    def _refuse(self, route: Any) -> None:
        self.elsewhere.append(route.request.url)
        route.abort()

    def give(self, picture: Path) -> None:
        self.page.locator("#fv-given input[type=file]").set_input_files(picture)
        self.page.locator("#fv-given img").wait_for()

    def choose(self, *methods: str) -> None:
        for box in self.page.locator(".fv-picker input").all():  # all, as a box leaves those that are checked
            if box.is_checked():
                box.uncheck(force=True)
        closed = self.page.locator(".fv-picker details:not([open]) summary")
        while closed.count():
            closed.first.click()
        for method in methods:
            self.page.get_by_label(method, exact=True).check(force=True)

    def keep(self, percent: int) -> None:
        number = self.page.get_by_label(re.compile("number input for Keep"))
        number.fill(str(percent))
        number.press("Tab")

    def ask(self, question: str | None = None) -> None:
        if question is not None:
            self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def wait_for(self, runs: int) -> None:
        """Until so many runs are done, and the page says nothing more."""
        self.page.locator(".fv-costs tbody tr").nth(runs - 1).wait_for()
        self.page.locator(".fv-say").wait_for(state="detached")

    def card(self, label: str) -> Any:
        return self.page.get_by_role("article", name=label, exact=True)

    def answer(self, label: str) -> str:
        return str(self.card(label).locator(".fv-answer").evaluate("answer => answer.firstChild.textContent"))


@pytest.fixture(params=WIDTHS)
def visitor(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, url, request.param)
    yield visitor
    assert not visitor.elsewhere and not visitor.complaints
    visitor.context.close()


def expected(session: LoadedModel, method: str | None, keep: str, picture: Path = PICTURE) -> Answer:
    """The run that the page should show."""
    desk = Desk(session)
    try:
        answer = list(desk.ask(desk.prepare(open_image(picture), QUESTION), method, keep, 64))[-1]
    finally:
        desk.close()
    assert isinstance(answer, Answer)
    return answer


def veiled(page: Any, label: str) -> int:
    """How many cells of a picture are drawn as dropped."""
    path = page.locator(f".fv-picture[data-label='{label}'] .fv-veil").get_attribute("d") or ""
    return sum(int(end) - int(start) for start, end in re.findall(r"M(\d+) \d+H(\d+)", path))


def test_answers_side_by_side(visitor: Visitor, session: LoadedModel) -> None:
    visitor.give(PICTURE)
    visitor.choose("idpruner", "fastv")
    visitor.ask(QUESTION)
    visitor.wait_for(3)
    page = visitor.page
    assert page.get_by_role("article").count() == 3
    for label, method in (("all tokens", None), ("idpruner", "idpruner"), ("fastv", "fastv")):
        run_alone = expected(session, method, "25%")
        assert visitor.answer(label) == run_alone.text
        count = visitor.card(label).locator(".fv-count").inner_text()
        assert count == ("49 of 196 tokens" if method else "196 tokens")
        assert veiled(page, label) == 196 - run_alone.report.tokens
    rows = page.locator(".fv-costs tbody tr").all_inner_texts()
    assert [row.split("\t")[0].strip() for row in rows] == ["all tokens", "idpruner", "fastv"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out

    visitor.keep(10)
    visitor.ask()
    page.get_by_text("20 of 196 tokens").nth(1).wait_for()
    visitor.wait_for(3)
    assert veiled(page, "idpruner") == 176


def test_pointing_at_a_token_tells_its_rank_and_score(visitor: Visitor, session: LoadedModel) -> None:
    visitor.give(PICTURE)
    visitor.choose("idpruner", "divprune", "d2pruner", "tome")
    visitor.ask(QUESTION)
    visitor.wait_for(5)
    for method in ("idpruner", "divprune", "d2pruner", "tome"):
        answer = expected(session, method, "25%")
        cells, kept = cells_of(answer, (112, 112)), answer.report.images[0].kept
        frame = visitor.card(method).locator(".fv-frame")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        for cell in (0, 16, *kept.nonzero()[:2, 0].tolist(), *(~kept).nonzero()[-2:, 0].tolist()):
            row, column = divmod(cell, 14)
            frame.hover(position={"x": (column + 0.5) * box["width"] / 14, "y": (row + 0.5) * box["height"] / 14})
            said = frame.locator(".fv-tip").inner_text()
            rank = cells["rank"][cell]
            if kept[cell]:
                whole = f"kept, pick {rank} of 49" if cells["one_by_one"] else f"kept, from a budget of {rank} on"
                assert said.startswith(whole)
            elif method == "tome":
                into = cells["target"][cell]
                assert said == f"merged into row {into // 14 + 1}, column {into % 14 + 1}"
            else:
                assert said.startswith("dropped at layer 2" if method == "d2pruner" else "dropped before the LLM")
            if cells["score"] is None:
                assert "score" not in said
            else:
                assert float(said.rpartition("score ")[2]) == pytest.approx(cells["score"][cell], rel=0.01)
            caption = visitor.card(method).locator(".fv-cell").inner_text()
            assert caption == f"Row {row + 1}, column {column + 1}: {said}."


def test_views_and_keys(visitor: Visitor, session: LoadedModel) -> None:
    page = visitor.page
    visitor.give(PICTURE)
    visitor.choose("idpruner", "divprune")
    visitor.ask(QUESTION)
    visitor.wait_for(3)
    cells = cells_of(expected(session, "idpruner", "25%"), (112, 112))
    drawn = visitor.card("idpruner").locator("canvas")
    page.get_by_label("Importance", exact=True).check(force=True)
    colours = drawn.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 14, 14).data].filter((_, i) => i % 4 == 0)"
    )
    best, worst = max(range(196), key=cells["score"].__getitem__), min(range(196), key=cells["score"].__getitem__)
    assert colours[best] > 240 and colours[worst] < 40  # of the red of each cell
    assert visitor.card("divprune").get_by_text("divprune gives no token a score by itself.").is_visible()

    page.get_by_label("Order of picks", exact=True).check(force=True)
    steps = page.get_by_role("slider", name="Picks that are shown")
    assert steps.get_attribute("max") == "49"
    for step in (1, 7, 49):
        steps.fill(str(step))
        assert veiled(page, "idpruner") == veiled(page, "divprune") == 196 - step
    page.get_by_role("button", name="Play the order of picks").click()
    page.wait_for_function("document.querySelector('.fv-player output').textContent.startsWith('5 of')")
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play the order of picks").is_visible()

    picture = visitor.card("idpruner").locator(".fv-picture")
    page.get_by_label("Kept tokens", exact=True).focus()
    while not picture.evaluate("picture => picture === document.activeElement"):
        page.keyboard.press("Tab")
    caption = visitor.card("idpruner").locator(".fv-cell")
    first = cells["kept"][0]
    assert caption.inner_text().startswith(f"Row {first // 14 + 1}, column {first % 14 + 1}: kept")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert caption.inner_text().startswith(f"Row {first // 14 + 2}, column 2: ")


def test_all_that_can_be_used_has_a_name(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("[data-example='0']").click()
    visitor.wait_for(3)
    question = example_questions()[0][1]
    assert page.get_by_label("Question").input_value() == question
    page.locator("#fv-given img[alt]").wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, img, [tabindex="0"]')]
            .filter((one) => one.offsetWidth && one.type !== 'file')
            .filter((one) => !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.alt
                || one.title || (one.labels && one.labels.length) || one.innerText.trim()))
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert not nameless
    assert page.get_by_role("heading", level=1).inner_text() == "foveate"
    label = visitor.card("idpruner").locator(".fv-picture").get_attribute("aria-label")
    assert label.startswith("idpruner keeps 49 of 196 tokens, most of them in the ")


def test_what_cannot_be_asked_is_said_in_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page

    def refused(sentence: str) -> None:
        page.get_by_role("alert").get_by_text(sentence).wait_for()

    visitor.ask(QUESTION)
    refused("There is no picture yet; drop one, or click an example.")
    damaged = tmp_path / "half.png"
    damaged.write_bytes(PICTURE.read_bytes()[:2000])
    page.locator("#fv-given input[type=file]").set_input_files(damaged)
    page.locator("#fv-given img").wait_for(state="attached")
    visitor.ask()
    refused("half.png is damaged or incomplete")
    assert page.get_by_role("alert").inner_text().startswith("half.png")  # not where it lies on the server
    page.get_by_role("button", name="Remove Image").click()
    visitor.give(PICTURE)
    visitor.ask(" ")
    refused("There is no question yet; write one")
    visitor.ask("what is <image>?")
    refused("the question holds '<image>', which stands for a picture in this model's prompts")
    visitor.choose()
    visitor.ask(QUESTION)
    refused("No method is chosen; choose at least one.")
    visitor.choose("idpruner", "divprune", "fastv", "random", "stride", "trim", "tome")
    visitor.ask()
    refused(f"7 methods are too many for one question; choose at most {MOST_METHODS}.")
    box = page.get_by_label("pixelprune", exact=True)
    assert box.is_disabled()
    reason = page.locator(f"#{box.get_attribute('aria-describedby')}")
    assert "takes whole images; use a method that prunes before the LLM" in reason.inner_text()
    visitor.choose("stride")
    visitor.ask("how many zebras are there?")
    page.get_by_text("The model does not know 'zebras'").wait_for()
    assert not page.get_by_role("alert").count()


def test_ten_at_once_get_their_own_answers(browser: Any, url: str) -> None:
    known = scenes()
    methods = ("idpruner", "d2pruner", "divprune", "fastv", "random", "stride", "trim", "visionzip", "scope", "dart")
    people = [Visitor(browser, url, "desktop") for _ in methods]
    for number, (visitor, method) in enumerate(zip(people, methods, strict=True)):
        visitor.give(FOLDER / f"{number:02}.png")
        visitor.choose(method)
        visitor.keep(10 + 5 * number)
        visitor.page.get_by_label("Question").fill(known[number].questions[0].text)
    for visitor in people:
        visitor.ask()
    for number, (visitor, method) in enumerate(zip(people, methods, strict=True)):
        visitor.wait_for(2)
        asked = ("ask", str(FOLDER / f"{number:02}.png"), known[number].questions[0].text)
        alone = run(*asked, "--method", method, "--keep", f"{10 + 5 * number}%", "--compare", "--json")
        full, pruned = json.loads(alone.stdout)["answers"]
        assert (visitor.answer("all tokens"), visitor.answer(method)) == (full["answer"], pruned["answer"])
        count = visitor.card(method).locator(".fv-count").inner_text()
        report = pruned["report"]
        assert count == f"{report['tokens']} of {report['tokens_before']} tokens"
        assert not visitor.elsewhere and not visitor.complaints
        visitor.context.close()


def test_the_page_leaves_the_model_as_it_was(session: LoadedModel, browser: Any, url: str) -> None:
    visitor = Visitor(browser, url, "desktop")
    visitor.page.locator("[data-example='1']").click()
    visitor.wait_for(3)
    visitor.context.close()
    with foveate.prune(session.model, "stride", keep=0.5), torch.no_grad():  # nothing else is attached
        pass
