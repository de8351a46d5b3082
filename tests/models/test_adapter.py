"""Finding the adapter of a live model."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_families
from foveate.models import adapter_of, registry
from tiny_models import Zoo


def test_supported_models_are_listed() -> None:
    listed = {row.model_type: row for row in foveate.supported_models()}
    assert listed["llava"].modalities == ("image",)
    assert listed["qwen2_5_vl"].modalities == ("image", "video")


def test_an_unsupported_model_hears_which_ones_are_supported() -> None:
    with pytest.raises(foveate.ModelError, match=r"Linear.*has no foveate adapter.*LlavaForConditionalGeneration"):
        adapter_of(torch.nn.Linear(2, 2))


def test_the_inner_model_without_a_head_is_refused(zoo: Zoo) -> None:
    with pytest.raises(foveate.ModelError, match="has no foveate adapter"):
        adapter_of(zoo.model.model)


def test_a_wrapped_model_is_unwrapped(llava: Zoo) -> None:
    class Wrapped(torch.nn.Module):  # as PEFT wraps models
        def get_base_model(self) -> torch.nn.Module:
            return llava.model

    assert adapter_of(Wrapped()).model is llava.model


def test_a_family_is_refused_on_releases_on_which_it_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_families.gemma3().model
    monkeypatch.setattr(registry.transformers, "__version__", "5.16.9")
    with pytest.raises(foveate.ModelError, match=r"from transformers 5\.17 on, and this is 5\.16\.9; update"):
        adapter_of(model)
    monkeypatch.setattr(registry.transformers, "__version__", "5.17.0.dev0")
    assert adapter_of(model).class_name == "Gemma3ForConditionalGeneration"


def test_the_code_of_a_models_authors_is_refused_where_an_adapter_knows_another(
    llava: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TheirLlava(torch.nn.Module):
        config, model = llava.model.config, torch.nn.Identity()

    class Tuned(type(llava.model)):  # type: ignore[misc]
        pass

    for cls in (TheirLlava, Tuned):
        monkeypatch.setattr(cls, "__module__", "transformers_modules.their.modeling_llava")
    with pytest.raises(foveate.ModelError, match=r"TheirLlava is its authors' own code.*load it without"):
        adapter_of(TheirLlava())
    assert adapter_of(Tuned(llava.model.config)).class_name == "LlavaForConditionalGeneration"

    class Own(type(adapter_of(llava.model))):  # type: ignore[misc]
        pass

    monkeypatch.setitem(registry._ADAPTERS, "llava", Own)
    assert type(adapter_of(TheirLlava())) is Own
