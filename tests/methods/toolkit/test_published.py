"""Settings that the authors published for some model families follow the model, unless the user says otherwise."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from foveate.methods import ModelFacts, get_method
from foveate.models import supported_models
from foveate.models.registry import _ADAPTERS

LLAVA = ModelFacts("", 8, 4, ("llava",))
QWEN2 = ModelFacts("", 8, 4, ("qwen2_vl", "qwen2_5_vl"))
QWEN25 = ModelFacts("", 8, 4, ("qwen2_5_vl", "qwen2_vl"))


@pytest.mark.parametrize(("facts", "window"), [(LLAVA, 6), (QWEN25, 4), (QWEN2, 4), (ModelFacts("", 8, 4), 6)])
def test_a_setting_follows_the_family_or_its_nearest_relative(facts, window):
    assert get_method("vscan").window == 6
    assert get_method("vscan").bind(facts).window == window


def test_what_the_user_sets_wins_even_where_it_is_the_default_of_another_family():
    assert get_method("vscan", window=6).bind(QWEN25).window == 6
    assert get_method(get_method("vscan"), window=6).bind(QWEN25).window == 6
    changed = get_method(get_method("vscan"), local=0.25).bind(QWEN25)
    assert changed == get_method("vscan", local=0.25, window=4).bind(QWEN25) and changed.window == 4


def test_a_wrapped_method_follows_the_model_too():
    from foveate.methods.toolkit.at_layer import AtLayer

    bound = AtLayer(get_method("vscan", inside=False), 1).bind(QWEN25)
    assert bound.base.window == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_know_what_the_user_left_alone(copied):
    assert copied(get_method("vscan")).bind(QWEN25).window == 4
    assert copied(get_method("vscan", window=6)).bind(QWEN25).window == 6


def test_methods_with_published_settings_are_ordinary_frozen_dataclasses():
    method = get_method("vscan")
    assert method == get_method("vscan", window=6) and hash(method) == hash(get_method("vscan", window=6))
    assert "window=6" in repr(method) and replace(method, window=2).window == 2
    with pytest.raises(AttributeError):
        method.window = 3


def test_relatives_are_named_as_transformers_names_them():
    import transformers
    from transformers import CONFIG_MAPPING

    assert supported_models()
    for adapter in _ADAPTERS.values():
        if not hasattr(transformers, adapter.class_name):  # which this release has not
            continue
        assert set(adapter.lineage()) <= set(CONFIG_MAPPING)
