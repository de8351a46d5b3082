"""The processor where the prompt decides: by the age of its images, and by what is asked about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.serving.vllm.request import PruneRequest

from .oracle import clip, picture
from .test_processor import hashes, lengths, processor, run
from .tiny import saved

pytestmark = pytest.mark.vllm

PICTURES = tuple(picture(112, 112, seed) for seed in range(4))
BY_AGE = {"foveate_keep": 0.5, "foveate_method": "divprune", "foveate_scope": "conversation"}
BY_TEXT = {"foveate_keep": 0.5, "foveate_method": "cdpruner", "foveate_query": "prompt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def ask(made: Any, prompt: str, data: dict[str, Any], asked: dict[str, Any], cache: Any = None, **more: Any) -> Any:
    """One prompt with its own text between images."""
    items = made.info.parse_mm_data(data)
    return made(prompt, items, hf_processor_mm_kwargs=asked, cache=cache, **more)


def marks(out: Any, modality: str = "image") -> list[PruneRequest]:
    """The requests that travel with the images."""
    found = [PruneRequest.from_tensor(item[f"foveate_{modality}"].data) for item in out["mm_kwargs"][modality]]
    assert None not in found
    return found  # type: ignore[return-value]


def encode(made: Any, text: str) -> list[int]:
    found: list[int] = made.info.get_tokenizer().encode(text, add_special_tokens=False)
    return found


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_newer_images_keep_more_and_keys_follow_what_is_kept(name: str, folder: Path) -> None:
    made = processor(saved(name, folder))
    whole = lengths(run(made, list(PICTURES)))
    assert whole == [16] * 4
    budget = foveate.Budget(0.5, "conversation")
    seen = {}
    for turn in (2, 3, 4):
        out = run(made, list(PICTURES[:turn]), **BY_AGE)
        assert lengths(out) == budget.split(whole[:turn])
        seen[turn] = hashes(out)
    assert seen[2][0] != seen[3][0] and seen[3][1] != seen[4][1]
    even = BY_AGE | {"foveate_scope": {"conversation": {"decay": 1.0}}}
    turns = [hashes(run(made, list(PICTURES[:turn]), **even)) for turn in (2, 4)]
    assert turns[1][:2] == turns[0]  # an image that keeps as many tokens keeps its key
    assert not set(turns[1]) & set(hashes(run(made, list(PICTURES))))


def test_an_image_asked_two_questions_is_two_entries(folder: Path) -> None:
    from vllm.config import ModelConfig
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    path = saved("qwen2_5_vl", folder)
    made = processor(path)
    cache = MultiModalProcessorOnlyCache(ModelConfig(model=str(path), dtype="float32"))
    token, data = made.info.get_hf_processor().image_token, {"image": list(PICTURES[:2])}
    keys = {}
    for question in ("what is", "red square"):
        prompt = f"<s>{token} blue {token}{question}"
        fresh = ask(made, prompt, data, BY_TEXT)
        for _ in range(2):
            out = ask(made, prompt, data, BY_TEXT, cache)
            assert out["prompt_token_ids"] == fresh["prompt_token_ids"] and hashes(out) == hashes(fresh)
            assert marks(out) == marks(fresh) and lengths(out) == [8, 8]
        keys[question] = hashes(out)
        texts = {mark.place.text for mark in marks(out) if mark.place}
        ids, (image,) = encode(made, prompt), encode(made, token)
        assert texts == {tuple(one for one in ids if one != image)}
    assert not set(keys["what is"]) & set(keys["red square"])
    first, second = marks(out)
    assert first.place is not None and second.place is not None
    assert first.place.image != second.place.image and first.place.before[0] < second.place.before[0]
    explicit = [hashes(ask(made, prompt, data, BY_TEXT | {"foveate_query": text})) for text in ("what?", "where?")]
    assert len({*explicit[0], *explicit[1], *keys["what is"]}) == 6


def test_an_image_is_named_for_what_the_encoder_sees(folder: Path) -> None:
    """Whatever is kept and asked, and otherwise where its pixels are made otherwise."""
    made = processor(saved("qwen2_5_vl", folder))
    names = {
        mark.place.image
        for asked in (BY_AGE, BY_TEXT, BY_TEXT | {"foveate_query": "what?"}, BY_AGE | {"foveate_keep": 0.25})
        for mark in marks(run(made, [PICTURES[0]], **asked))
        if mark.place
    }
    assert len(names) == 1
    (other,) = marks(run(made, [PICTURES[0]], **BY_AGE, do_rescale=False))
    assert other.place is not None and other.place.image not in names


def test_clips_and_images_are_as_old_as_their_place_in_the_prompt(folder: Path) -> None:
    made = processor(saved("qwen2_5_vl", folder))
    hf = made.info.get_hf_processor()
    data = {"image": list(PICTURES[:2]), "video": clip(4, 56, 84, 3)}
    prompt = f"<s>{hf.image_token}<|vision_start|>{hf.video_token}<|vision_end|>{hf.image_token}"
    (length,) = (place.get_num_embeds() for place in ask(made, prompt, data, {})["mm_placeholders"]["video"])
    out = ask(made, prompt, data, BY_AGE)
    (video,) = marks(out, "video")
    counts = [mark.place.counts[0] for mark in marks(out) if mark.place]
    counts.insert(1, video.place.counts[0])  # type: ignore[union-attr]
    assert counts == foveate.Budget(0.5, "conversation").split([16, length, 16])


def test_an_image_known_by_its_uuid_is_served_while_it_is_cached_and_refused_after(folder: Path) -> None:
    from vllm.config import ModelConfig
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache
    from vllm.multimodal.parse import parse_mm_uuids

    path = saved("qwen2_5_vl", folder)
    made = processor(path)
    cache = MultiModalProcessorOnlyCache(ModelConfig(model=str(path), dtype="float32"))
    token = made.info.get_hf_processor().image_token

    def turn(images: list[Any], **asked: Any) -> Any:
        names = parse_mm_uuids({"image": [f"picture-{i}" for i in range(len(images))]})
        return ask(made, "<s>" + token * len(images), {"image": images}, BY_AGE | asked, cache, mm_uuid_items=names)

    sent = turn(list(PICTURES[:2]))
    assert hashes(turn([None, None])) == hashes(sent)
    with pytest.raises(foveate.FoveateError, match="image 0 was given by its UUID alone"):
        turn([None, None], foveate_keep=0.25)


def test_shapes_are_remembered_within_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.serving.vllm import whole_prompt

    monkeypatch.setattr(whole_prompt, "_MOST_SHAPES", 2)
    made = processor(saved("llava", folder))
    first = lengths(run(made, list(PICTURES), **BY_AGE))
    assert len(made._whole_prompt._shapes) == 2
    assert lengths(run(made, list(PICTURES), **BY_AGE)) == first
    plain = processor(saved("llava", folder))
    assert hashes(run(plain, [PICTURES[0]], foveate_keep=0.5)) == hashes(run(made, [PICTURES[0]], foveate_keep=0.5))


def test_text_that_the_model_cannot_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.serving.vllm import whole_prompt

    made = processor(saved("llava", folder))
    monkeypatch.setattr(whole_prompt, "MOST_TEXT", 3)
    with pytest.raises(foveate.FoveateError, match="3 tokens of text, not"):
        run(made, [PICTURES[0]], **BY_TEXT | {"foveate_query": "what is in the picture?"})
    monkeypatch.undo()
    monkeypatch.setattr(type(made.info.ctx.model_config), "get_vocab_size", lambda self: 100)
    with pytest.raises(foveate.FoveateError, match="beyond the 100"):
        run(made, [PICTURES[0]], **BY_TEXT)
