"""The processor alone, without an engine: prompts have their final length, and caches never mix what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.tokens import Grid

from .oracle import clip, picture
from .processors import MAKERS
from .tiny import NAMES, saved

pytestmark = pytest.mark.vllm

A, B = picture(84, 112, 0), picture(168, 56, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def processor(path: Path, **overrides: Any) -> Any:
    """vLLM's processor of a checkpoint, made as a server makes it."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    config = ModelConfig(model=str(path), dtype="float32", hf_overrides={"foveate": overrides} if overrides else {})
    return MULTIMODAL_REGISTRY.create_processor(config)


def run(made: Any, images: list[Any], cache: Any = None, **asked: Any) -> Any:
    token = made.info.get_hf_processor().image_token
    items = made.info.parse_mm_data({"image": images})
    return made("<s>" + token * len(images) + "what is", items, hf_processor_mm_kwargs=asked, cache=cache)


def lengths(out: Any) -> list[int]:
    """Placeholders of each image that receive an embedding."""
    return [place.get_num_embeds() for place in out["mm_placeholders"]["image"]]


def hashes(out: Any) -> list[str]:
    return out["mm_hashes"]["image"]


@pytest.mark.parametrize("name", NAMES)
def test_placeholders_follow_from_the_budget_and_hashes_from_what_is_kept(name: str, folder: Path) -> None:
    made = processor(saved(name, folder))
    plain = run(made, [A, B])
    for keep in (0.5, "25%", 6):
        pruned = run(made, [A, B], foveate_keep=keep, foveate_method="divprune")
        pools = [16] * 2 if name == "internvl" else lengths(plain)  # InternVL's tiles have 16 tokens each
        count = [foveate.Budget(keep).count(pool) * (n // pool) for n, pool in zip(lengths(plain), pools, strict=True)]
        assert lengths(pruned) == count
        assert sum(lengths(pruned)) < sum(lengths(plain))
        assert not set(hashes(pruned)) & set(hashes(plain))
    half, quarter = (run(made, [A], foveate_keep=k, foveate_method="divprune") for k in (0.5, 0.25))
    assert hashes(half) != hashes(quarter)
    assert hashes(quarter) == hashes(run(made, [A], foveate_keep="25%", foveate_method="divprune"))
    assert hashes(quarter) != hashes(run(made, [A], foveate_keep=0.25, foveate_method="scope"))
    assert hashes(plain) == hashes(run(made, [A, B], foveate_keep=1.0))


@pytest.mark.parametrize("name", [*NAMES, *(name for name in MAKERS if name != "llava_next_video")])
def test_nothing_changes_for_requests_that_do_not_ask(name: str, folder: Path) -> None:
    """The same prompt, hashes and tensors as vLLM's own processor of the family."""
    made = processor(saved(name, folder))
    own = type(made).__mro__[2]  # after our class and the mixin
    assert own.__module__.startswith("vllm.")
    ours, theirs = run(made, [A, B]), run(own(made.info, made.dummy_inputs), [A, B])
    assert ours["prompt_token_ids"] == theirs["prompt_token_ids"] and hashes(ours) == hashes(theirs)
    for mine, other in zip(ours["mm_kwargs"]["image"], theirs["mm_kwargs"]["image"], strict=True):
        data, expected = mine.get_data(), other.get_data()
        assert not data.pop("foveate_image").any()
        data.pop("foveate_image_key")  # the image's name, of no use to an image that is not pruned
        assert data.keys() == expected.keys()
        assert all(bool((data[key] == expected[key]).all()) for key in data)


def test_the_processor_cache_keeps_ratios_apart_and_answers_repeats(folder: Path) -> None:
    from vllm.config import ModelConfig
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    path = saved("qwen2_5_vl", folder)
    made = processor(path)
    cache = MultiModalProcessorOnlyCache(ModelConfig(model=str(path), dtype="float32"))
    seen = {}
    for _ in range(2):
        for keep in (1.0, 0.5, 0.25):
            out = run(made, [A, B], cache, foveate_keep=keep, foveate_method="divprune")
            fresh = run(made, [A, B], foveate_keep=keep, foveate_method="divprune")
            assert out["prompt_token_ids"] == fresh["prompt_token_ids"] and hashes(out) == hashes(fresh)
            seen[keep] = lengths(out)
    assert seen == {1.0: [12, 12], 0.5: [6, 6], 0.25: [3, 3]}


def test_a_server_default_is_overruled_by_requests_and_not_by_profiling(folder: Path) -> None:

    made = processor(saved("qwen2_5_vl", folder), method="divprune", keep=0.25)
    assert lengths(run(made, [A])) == [3]
    assert lengths(run(made, [A], foveate_keep=1.0)) == [12]
    dummy = made.get_dummy_mm_inputs({"image": 1})
    plain = processor(saved("qwen2_5_vl", folder)).get_dummy_mm_inputs({"image": 1})
    assert lengths(dummy) == lengths(plain)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_clips(name: str, folder: Path) -> None:
    made = processor(saved(name, folder))
    video = clip(4, 56, 84, 3)
    token = made.info.get_hf_processor().video_token

    def clip_tokens(**asked: Any) -> int:
        items = made.info.parse_mm_data({"video": video})
        out = made(f"<s><|vision_start|>{token}<|vision_end|>", items, hf_processor_mm_kwargs=asked)
        (place,) = out["mm_placeholders"]["video"]
        return place.get_num_embeds()

    full = clip_tokens()
    frame = Grid(1, full // 2)  # two patches in time make one frame of tokens
    assert clip_tokens(foveate_keep=0.3, foveate_scope="frame") == 2 * foveate.Budget(0.3).count(len(frame))
    if name == "qwen2_5_vl":
        assert clip_tokens(foveate_keep=0.3, foveate_method="divprune") == foveate.Budget(0.3).count(full)
        assert clip_tokens(foveate_keep=0.6, foveate_method="evs") == foveate.Budget(0.6).count(full)
        with pytest.raises(foveate.FoveateError, match="first frame of a clip whole"):
            clip_tokens(foveate_keep=0.3, foveate_method="evs")


def test_a_clip_that_cannot_be_pruned_is_refused_and_not_left_as_it_is(folder: Path) -> None:
    made = processor(saved("internvl", folder))
    items = made.info.parse_mm_data({"video": clip(4, 56, 56, 3)})
    prompt = f"<s>{made.info.get_hf_processor().video_token}"
    assert made(prompt, items, hf_processor_mm_kwargs={"foveate_keep": 1.0})["mm_placeholders"]["video"]
    with pytest.raises(foveate.FoveateError, match="on image input only, and the request holds a video"):
        made(prompt, items, hf_processor_mm_kwargs={"foveate_keep": 0.5})
