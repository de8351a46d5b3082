"""A real engine on the CPU says what transformers says where the prompt decides: by age, and by what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import foveate
from foveate.serving.vllm.faults import count_faults

from .engine import answers, engine, outputs
from .oracle import Case, Oracle, picture
from .test_engine import check
from .tiny import saved

pytestmark = pytest.mark.vllm

TEXT = "what is in the picture?"
OTHER = "a red square on a blue"
SIZES = ((84, 112), (168, 56), (56, 56), (112, 112), (84, 84))
HISTORY = tuple(picture(*size, seed) for seed, size in enumerate(SIZES))


def by_age(keep: Any, method: str = "divprune", scope: Any = "conversation", **more: Any) -> dict[str, Any]:
    return {"foveate_keep": keep, "foveate_method": method, "foveate_scope": scope, **more}


def by_text(keep: Any, method: str = "cdpruner", query: str = "prompt", **more: Any) -> dict[str, Any]:
    return {"foveate_keep": keep, "foveate_method": method, "foveate_query": query, **more}


CASES = [
    Case(HISTORY[:1], asked=by_age(0.5)),
    Case(HISTORY[:3], asked=by_age(0.4), between=OTHER),
    Case(HISTORY, asked=by_age(0.5, "idpruner", {"conversation": {"decay": 0.8}}), between=OTHER),
    Case(HISTORY[::-1], asked=by_age(24, "avgpool"), between=OTHER),
    Case(HISTORY[:1], TEXT, asked=by_text(0.5)),
    Case(HISTORY[:1], OTHER, asked=by_text(0.5)),
    Case(HISTORY[:2], OTHER, asked=by_text(0.4, "trim"), between=TEXT),
    Case(HISTORY[:2], TEXT, asked=by_text(0.3, "par"), between=OTHER),
    Case(HISTORY[1:3], TEXT, asked=by_text(6, "eadp")),
    Case((HISTORY[0], HISTORY[0]), TEXT, asked=by_text(0.5), between=OTHER),
    Case(HISTORY[:4], TEXT, asked=by_text(0.5, foveate_scope="conversation"), between=OTHER),
    Case(HISTORY[:2], asked={"foveate_keep": 0.5, "foveate_method": "divprune"}),
    Case(HISTORY[:2]),
]
INSIDE = [foveate.InEncoder("divprune", 1), foveate.get_method("cdpruner")]


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Oracle]]:
    """Prompts cut into chunks of 64 tokens."""
    path = saved(request.param, tmp_path_factory.mktemp("checkpoints"))
    oracle = Oracle(request.param, path)
    # With a keep of 1.0 nothing but what requests ask for is pruned.
    inside = {} if request.param == "llava" else {"foveate": foveate.PruningConfig(INSIDE, keep=1.0).to_dict()}
    with engine(path, max_num_batched_tokens=64, limit_mm_per_prompt={"image": 5}, hf_overrides=inside) as llm:
        yield llm, oracle


def encoded(llm: Any) -> int:
    """Images that went through the encoder so far, of batches with pruned ones."""
    (count,) = llm.apply_model(lambda model: model._pruner.encoded)
    return int(count)


def test_equals_transformers_in_one_batch_and_again_from_caches(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    expected = [oracle.answer(case) for case in CASES]
    check(answers(llm, oracle, CASES), expected)
    check(answers(llm, oracle, CASES[::-1]), expected[::-1])
    again = [case for case in CASES for _ in range(2)]
    check(answers(llm, oracle, again), [answer for answer in expected for _ in range(2)])
    unpruned = oracle.answer(Case(HISTORY, between=OTHER))
    assert expected[2].prompt < unpruned.prompt and expected[2].logprobs != unpruned.logprobs


def test_questions_choose_among_what_the_encoder_left(pair: tuple[Any, Oracle]) -> None:
    """Each image loses tokens inside the encoder once, whatever is asked of it behind."""
    llm, oracle = pair
    if oracle.name == "llava":
        pytest.skip("its encoder is whole")
    before = encoded(llm)
    for text in (TEXT, OTHER):
        asked = {"foveate_keep": [0.5, 0.25]}
        same = Case(HISTORY[3:5], text, asked=asked | {"foveate_method": INSIDE})
        check(
            answers(llm, oracle, [Case(same.images, text, asked=asked | {"foveate_query": "prompt"})]),
            [oracle.answer(same)],
        )
    assert encoded(llm) - before == 2


def test_the_question_is_that_of_the_request(pair: tuple[Any, Oracle]) -> None:
    """A text that is the prompt's own chooses as the prompt does; another one chooses otherwise."""
    llm, oracle = pair
    case = Case(HISTORY[3:4], TEXT, asked=by_text(0.25))
    own, same, other = (
        Case(case.images, TEXT, asked=by_text(0.25, query=query)) for query in ("prompt", "<s>" + TEXT, OTHER)
    )
    found = answers(llm, oracle, [own, same, other])
    expected = oracle.answer(case)
    if oracle.name == "llava":  # Qwen's prompts have the marks around an image, too
        check(found[:2], [expected, expected])
    else:
        check(found[:1], [expected])
    assert found[2].prompt == expected.prompt and found[2].logprobs != found[0].logprobs


def test_an_image_that_ages_or_is_asked_again_goes_through_the_encoder_once(pair: tuple[Any, Oracle]) -> None:
    from foveate.serving.vllm.feature_cache import FeatureCache

    llm, oracle = pair

    def turns(seed: int) -> int:
        history = tuple(picture(112, 84, seed + turn) for turn in range(5))
        cases = [Case(history[: turn + 1], asked=by_age(0.5), between=OTHER) for turn in range(5)]
        before = encoded(llm)
        check([one for case in cases for one in answers(llm, oracle, [case])], [oracle.answer(case) for case in cases])
        return encoded(llm) - before

    assert turns(100) == 5
    before = encoded(llm)
    asked = [Case((picture(112, 84, 300),), text, asked=by_text(0.5)) for text in (TEXT, OTHER)]
    check(answers(llm, oracle, asked), [oracle.answer(case) for case in asked])
    assert encoded(llm) == before + 1
    (kept,) = llm.apply_model(lambda model: model._pruner.features)
    llm.apply_model(lambda model: setattr(model._pruner, "features", FeatureCache(0)))
    try:
        without = turns(200)
    finally:
        llm.apply_model(lambda model: setattr(model._pruner, "features", kept))
    assert 5 < without <= 15


def test_what_cannot_be_done_is_refused_and_the_engine_goes_on(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    refused = {
        "give the question as foveate_query": {"foveate_keep": 0.5, "foveate_method": "cdpruner"},
        "leave out foveate_query": by_text(0.5, "divprune"),
        "is not a question": by_text(0.5, query=" "),
        "add foveate_keep": {"foveate_query": TEXT},
        "8192 tokens of text": by_text(0.5, query=TEXT * 2000),
        "decay=2 is out of range": by_age(0.5, scope={"conversation": {"decay": 2}}),
        "is unknown": by_age(0.5, scope=[]),
    }
    for sentence, arguments in refused.items():
        with pytest.raises(ValueError, match=sentence):
            answers(llm, oracle, [Case(HISTORY[:1], asked=arguments)])
    check(answers(llm, oracle, CASES[4:5]), [oracle.answer(CASES[4])])


def test_a_uuid_that_is_given_to_two_images_harms_nobody(pair: tuple[Any, Oracle]) -> None:
    """Clients may name images themselves; what is known of the first is not taken for the second."""
    llm, oracle = pair
    large, small = picture(140, 140, 400), picture(56, 84, 401)

    def ask(image: Any, query: str) -> Any:
        case = Case((image,), asked=by_text(4, query=query))
        return outputs(llm, oracle, [case], uuids=["mine"])[0]

    ask(large, TEXT)
    if oracle.name == "qwen2_5_vl":  # all of LLaVA's have one size
        with pytest.raises(ValueError, match="has the UUID of another image"):
            ask(small, OTHER)
    counted = count_faults()
    # As another process of the API does, which has not seen the first, with the same engine.
    llm.llm_engine.renderer.mm_processor._whole_prompt._shapes.clear()
    found = ask(small, "red") if oracle.name == "qwen2_5_vl" else ask(large, "red")
    assert found.outputs[0].token_ids and count_faults() == counted
    check(answers(llm, oracle, CASES[4:5]), [oracle.answer(CASES[4])])
