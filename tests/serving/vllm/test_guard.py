"""Nothing that was asked for is dropped in silence: by servers of unknown models, or in places that nothing reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from foveate import FoveateError
from foveate.serving.vllm.config import LIMITS_KEY
from foveate.serving.vllm.guard import check_body, check_prompt, check_server, explain_unknown

from .test_limits import vllm_config


def model_config(architecture: str, settings: Any = None, **changed: Any) -> Any:
    """The little of vLLM's configuration of a model that is looked at."""
    facts: dict[str, Any] = {
        "architecture": architecture,
        "architectures": [architecture],
        "is_multimodal_model": True,
        "hf_overrides": {},
        "multimodal_config": None,
        "hf_config": SimpleNamespace(model_type="any", foveate=settings),
    }
    return SimpleNamespace(**(facts | changed))


def server(architecture: str, settings: Any = None, **changed: Any) -> Any:
    made = vllm_config(pp=2)
    made.model_config = model_config(architecture, settings, **changed)
    return made


KNOWN, UNKNOWN = "Qwen2VLForConditionalGeneration", "InternVLChatModel"


def test_a_default_on_an_unknown_model_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({"keep": 0.5}, {"keep": 25}, {"method": "divprune", "keep": "30%"}):
        with pytest.raises(FoveateError, match=r"InternVLChatModel cannot be pruned in vLLM, where .*Qwen2VL.* start"):
            check_server(server(UNKNOWN, settings))
    for settings in (None, {"keep": 1.0}, {"method": "divprune"}):
        check_server(server(UNKNOWN, settings))
    monkeypatch.setenv("FOVEATE_KEEP", "0.5")
    with pytest.raises(FoveateError, match="cannot be pruned in vLLM"):
        check_server(server(UNKNOWN))
    check_server(server(UNKNOWN, {"keep": 1.0}))


def test_text_models_and_classes_of_transformers_are_named_as_such() -> None:
    text = model_config("LlamaForCausalLM", is_multimodal_model=False)
    assert "LlamaForCausalLM reads no images" in explain_unknown(text)
    with pytest.raises(FoveateError, match="reads no images"):
        check_server(server("LlamaForCausalLM", {"keep": 0.5}, is_multimodal_model=False))
    wrapped = model_config("TransformersMultiModalForCausalLM", architectures=[KNOWN])
    assert f"runs {KNOWN} as TransformersMultiModalForCausalLM" in explain_unknown(wrapped)
    assert "--model-impl transformers" in explain_unknown(wrapped)


def test_an_adapter_for_transformers_is_named() -> None:
    assert "foveate.prune" not in explain_unknown(model_config(UNKNOWN))
    assert "foveate.prune" in explain_unknown(model_config("Gemma3ForConditionalGeneration"))
    other = SimpleNamespace(model_type="gemma3")
    assert "foveate.prune" in explain_unknown(model_config("Own", hf_config=other))


def test_the_reason_is_told_where_vllm_has_a_class() -> None:
    assert "whose name ends in -HF)" in explain_unknown(model_config("InternVLChatModel"))
    assert "(its visual tokens see what comes behind" in explain_unknown(model_config("Gemma3ForConditionalGeneration"))


def test_a_known_model_learns_what_its_server_rules_out() -> None:
    made = server(KNOWN, {"keep": 0.5})
    made.model_config.multimodal_config = vllm_config().model_config.multimodal_config
    check_server(made)
    assert "pipeline parallelism" in getattr(made.model_config.hf_config, LIMITS_KEY)["all"]


@pytest.mark.parametrize("key", ["foveat", "foveate_keep", "Foveate", "fovaete"])
def test_a_misspelled_override_does_not_start(key: str) -> None:
    for architecture in (KNOWN, UNKNOWN):
        with pytest.raises(FoveateError, match=f"nothing reads '{key}' among --hf-overrides"):
            check_server(server(architecture, hf_overrides={key: {"keep": 0.5}}))
    check_server(server(UNKNOWN, hf_overrides={"architectures": [UNKNOWN], "text_config": {}}))
    check_server(server(UNKNOWN, hf_overrides=lambda config: config))


def test_defaults_for_the_processor_of_an_unknown_model_do_not_start() -> None:
    for asked in ({"foveate_keep": 0.5}, {"images_kwargs": {"foveate_keep": 0.5}}):
        with pytest.raises(FoveateError, match="give defaults by --hf-overrides"):
            check_server(server(UNKNOWN, multimodal_config=SimpleNamespace(mm_processor_kwargs=asked)))


def renderer(processor: Any = None) -> Any:
    return SimpleNamespace(mm_processor=processor, model_config=model_config(UNKNOWN))


@pytest.mark.parametrize(
    "asked", [{"foveate_keep": 0.5}, {"foveate_keep": 1.0}, {"images_kwargs": {"foveate_keep": 0.5}}, {"foveate_x": 1}]
)
def test_requests_to_an_unknown_model_are_refused(asked: dict[str, Any]) -> None:
    for prompt in ({"mm_processor_kwargs": asked}, {"encoder_prompt": {"mm_processor_kwargs": asked}}):
        for processor in (None, object()):
            with pytest.raises(FoveateError, match=r"InternVLChatModel cannot .*; leave foveate_\w+ out of the req"):
                check_prompt(renderer(processor), {"prompt_token_ids": [1], **prompt}, 0.0)
    check_prompt(renderer(), {"prompt_token_ids": [1], "mm_processor_kwargs": {"max_pixels": 1}}, 0.0)
    check_prompt(renderer(), {"prompt_token_ids": [1], "mm_processor_kwargs": None}, 0.0)
    check_prompt(renderer(), {"prompt_token_ids": [1]}, 0.0)


def test_requests_without_images_are_checked_by_the_processor_of_a_known_model() -> None:
    seen: list[Any] = []
    known = SimpleNamespace(check_request=seen.append)
    check_prompt(renderer(known), {"mm_processor_kwargs": {"max_pixels": 1}}, 0.0)
    check_prompt(renderer(known), {"mm_processor_kwargs": {"foveate_keep": 0.5}}, 0.0)
    assert seen == [{"foveate_keep": 0.5}]


def test_arguments_beside_a_prompt_are_refused() -> None:
    known = SimpleNamespace(check_request=lambda asked: None)
    for key in ("foveate_keep", "foveate_keeps"):
        with pytest.raises(FoveateError, match=f"nothing reads '{key}' beside the prompt; give it inside of"):
            check_prompt(renderer(known), {"prompt_token_ids": [1], key: 0.5}, 0.0)


def test_arguments_in_the_wrong_place_of_a_body_are_refused() -> None:
    for body in (
        {"model_extra": {"foveate_keep": 0.5}},
        {"model_extra": {"extra_body": {"foveate_keep": 0.5}}},
        {"chat_template_kwargs": {"foveate_keep": 0.5}},
        {"media_io_kwargs": {"image": {"foveate_keep": 0.5}}},
        {"vllm_xargs": {"foveate_keep": 0.5}},
    ):
        with pytest.raises(FoveateError, match=r"'foveate_keep' .* inside of mm_processor_kwargs"):
            check_body(SimpleNamespace(**body))
    check_body(SimpleNamespace(model_extra={"store": True}, chat_template_kwargs=None, media_io_kwargs={}))
    check_body(SimpleNamespace())
