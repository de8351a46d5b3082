"""What the page asks and shows, without gradio: choices, answers of many at once, and the numbers of pictures."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

import foveate
from foveate.app.choices import Choice, choices_for
from foveate.app.desk import UNPRUNED, Answer, Desk
from foveate.app.drawing import card, cells_of, data_url, describe, failed_card, table
from foveate.app.errors import AppError
from foveate.app.page import _check
from foveate.data.loading import LoadedModel
from foveate.errors import FoveateError
from foveate.methods import Where, method_names
from foveate.testbed import load_shipped, scenes

SIZE = (112, 112)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    desk = Desk(LoadedModel(*load_shipped()))
    yield desk
    desk.close()


def ask(desk: Desk, picture: Image.Image, question: str, method: str | None, keep: str = "25%") -> list[str | Answer]:
    return list(desk.ask(desk.prepare(picture, question), method, keep, 16))


def test_what_the_model_refuses_says_why(desk: Desk) -> None:
    choices = choices_for(desk.session.model)
    assert sorted(choice.name for choice in choices) == sorted(method_names())
    refused = {choice.name: choice.refusal for choice in choices if choice.refusal}
    assert set(refused) == {"evs", "fastmmoe", "modes", "pixelprune"}
    for name in ("fastmmoe", "pixelprune"):
        with pytest.raises(FoveateError, match=re.escape(refused[name])):
            foveate.prune(desk.session.model, name)
    assert not choices[0].refusal and choices[-1].refusal  # those that can be chosen come first


def test_an_answer_grows_and_ends_as_without_the_page(desk: Desk) -> None:
    scene = scenes()[0]
    question = scene.questions[0].text
    *said, last = ask(desk, scene.image, question, "idpruner")
    assert isinstance(last, Answer)
    with foveate.prune(desk.session.model, "idpruner", keep="25%") as pruning:
        alone = desk.session.generate(desk.session.inputs([scene.image], question), 16)
        kept = pruning.report().images[0].kept
    assert last.text == alone and torch.equal(last.report.images[0].kept, kept)
    assert len(said) > 1 and all(isinstance(part, str) and alone.startswith(part) for part in said)
    assert 0 < last.first_seconds <= last.seconds


def test_many_at_once_get_their_own_answers(desk: Desk) -> None:
    known = scenes()
    asked = [
        (known[number % 6], method, f"{10 + number}%")
        for number, method in enumerate((None, "idpruner", "divprune", "fastv", "random", "stride", "idpruner", "trim"))
    ]
    with ThreadPoolExecutor(len(asked)) as people:
        given = list(people.map(lambda one: ask(desk, one[0].image, one[0].questions[0].text, *one[1:])[-1], asked))
    for (scene, method, keep), answer in zip(asked, given, strict=True):
        assert isinstance(answer, Answer) and answer.label == (method or UNPRUNED)
        with foveate.prune(desk.session.model, method or "stride", keep=keep if method else 1.0) as pruning:
            inputs = desk.session.inputs([scene.image], scene.questions[0].text)
            assert answer.text == desk.session.generate(inputs, 16)
            assert torch.equal(answer.report.images[0].kept, pruning.report().images[0].kept)


def test_what_fails_is_one_sentence_and_harms_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = scenes()[0].image
    with pytest.raises(FoveateError, match="evs compares the frames of clips"):
        ask(desk, picture, "what is it?", "evs")
    with pytest.raises(FoveateError, match="holds '<image>', which stands for a picture"):
        desk.prepare(picture, "what is <image>?")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")

    prepared = desk.prepare(picture, "what is it?")
    with monkeypatch.context() as patch:
        patch.setattr(type(desk.session.model), "generate", fail)
        with pytest.raises(AppError, match=r"^the model failed \(CUDA out of memory. Tried to allocate 2 GiB\); try a"):
            list(desk.ask(prepared, "divprune", "25%", 4))
    assert isinstance(ask(desk, picture, "what is it?", "divprune")[-1], Answer)


def test_who_leaves_stops_the_run(desk: Desk) -> None:
    left = threading.Event()
    left.set()
    prepared = desk.prepare(scenes()[0].image, "what is it?")
    answer = desk._run(prepared, "divprune", "25%", 16, lambda said: None, left)
    assert len(desk.session.processor.tokenizer(answer.text, add_special_tokens=False)["input_ids"]) <= 1


def test_cells_are_those_of_the_report(desk: Desk) -> None:
    scene = scenes()[1]
    for method in ("idpruner", "d2pruner", "divprune", "tome"):
        answer = ask(desk, scene.image, scene.questions[0].text, method, "10%")[-1]
        assert isinstance(answer, Answer)
        cells, kept = cells_of(answer, SIZE), answer.report.images[0].kept
        assert cells["kept"] == kept.nonzero()[:, 0].tolist()
        assert sorted(cells["rank"][cell] for cell in cells["kept"]) == list(range(1, len(cells["kept"]) + 1)) or (
            not cells["one_by_one"]
        )
        assert (cells["score"] is None) == (method in ("divprune", "tome"))
        assert (cells["target"] is not None) == (method == "tome")
        assert {cells["dropped"][cell] for cell in range(196)} == {-2, 2 if method == "d2pruner" else 0}
    whole = ask(desk, scene.image, scene.questions[0].text, None)[-1]
    assert isinstance(whole, Answer)
    cells = cells_of(whole, SIZE)
    assert cells["kept"] == list(range(196)) and cells["rank"] is None
    assert describe(cells, UNPRUNED) == "all tokens: all 196 tokens, in 14 rows and 14 columns."


def test_a_description_says_where_kept_tokens_lie() -> None:
    cells = {"rows": 6, "columns": 6, "kept": [0, 1, 35]}
    assert describe(cells, "x") == "x keeps 3 of 36 tokens, most of them in the upper left (2) and lower right (1)."


def test_tiles_are_shown_as_one_picture(desk: Desk) -> None:
    answer = ask(desk, scenes()[0].image, "what is it?", "divprune")[-1]
    assert isinstance(answer, Answer)
    image, picks = answer.report.images[0], answer.picks[0]
    report = replace(answer.report, images=[image] * 3)
    cells = cells_of(replace(answer, report=report, picks=(picks,) * 3, targets=(None,) * 3), (224, 112))
    assert (cells["rows"], cells["columns"]) == (14, 28)
    kept = image.kept.view(14, 14)
    assert cells["kept"] == torch.cat([kept, kept], 1).flatten().nonzero()[:, 0].tolist()
    assert cells["small"] == "49 of 196 tokens of the whole in small" and not cells["one_by_one"]


def test_what_people_write_is_shown_as_they_wrote_it(desk: Desk) -> None:
    answer = ask(desk, scenes()[0].image, "what is it?", "idpruner")[-1]
    assert isinstance(answer, Answer)
    picture, size = data_url(scenes()[0].image)
    shown = card("idpruner", "<script>x</script>", answer, picture, size, replace(answer, label=UNPRUNED))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "same answer" in shown
    assert "<b>" not in failed_card("x", "a <b> c")
    assert "another answer" in card("idpruner", "x", replace(answer, text="x"), picture, size, answer)


def test_the_table_has_the_numbers_of_the_report(desk: Desk) -> None:
    picture = scenes()[0].image
    full, pruned = (ask(desk, picture, "what is it?", method)[-1] for method in (None, "idpruner"))
    assert isinstance(full, Answer) and isinstance(pruned, Answer)
    rows = [re.sub("<[^>]+>", " ", row).split() for row in table([full, pruned]).split("<tr>")[2:]]
    report = pruned.report
    assert rows[0][:3] == ["all", "tokens", "196"]
    assert rows[1][:5] == ["idpruner", "49", "25%", "49", "25%"]
    assert rows[1][5:9] == [
        f"{report.flops / 1e9:.3g}",
        f"{report.flops / report.flops_before:.0%}",
        f"{report.kv_bytes / 1e6:.3g}",
        f"{report.kv_bytes / report.kv_bytes_before:.0%}",
    ]


def test_large_pictures_are_sent_small() -> None:
    url, size = data_url(Image.new("RGB", (4000, 2000)))
    assert size == (720, 360) and url.startswith("data:image/jpeg") and len(url) < 20_000


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"path": None}, "There is no picture yet"),
        ({"path": ""}, "There is no picture yet"),
        ({"question": ""}, "There is no question yet"),
        ({"names": []}, "No method is chosen"),
        ({"names": ["idpruna"]}, "'idpruna' is not a method"),
        ({"names": [["idpruner"]]}, "is not a method"),
        ({"names": ["divprune", "pixelprune"]}, "takes whole images"),
        ({"names": list("abcdefg")}, "7 methods are too many"),
        ({"percent": 0}, "0 is not a share of the visual tokens; give a number from 1 to 100."),
        ({"percent": 101}, "101 is not a share"),
        ({"percent": None}, "None is not a share"),
        ({"percent": "25%"}, "25% is not a share"),
        ({"percent": float("nan")}, "nan is not a share"),
        ({"tokens": 0}, "0 is not a length of an answer; give a number from 1 to 512."),
        ({"tokens": 10**9}, "is not a length of an answer"),
    ],
)
def test_whatever_is_sent_is_refused_by_a_sentence(given: dict[str, object], sentence: str) -> None:
    right = {"path": "x.png", "question": "what is it?", "names": ["divprune"], "percent": 25, "tokens": 8}
    choices = {
        "divprune": Choice("divprune", "", Where.BEFORE_LLM),
        "pixelprune": Choice("pixelprune", "", Where.BEFORE_ENCODER, "it takes whole images"),
    }
    _check(choices, **right)  # type: ignore[arg-type]
    with pytest.raises(AppError, match=re.escape(sentence)):
        _check(choices, **{**right, **given})  # type: ignore[arg-type]
