"""The plugin inside of vLLM, without an engine: servers and requests of models that it does not know."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers as tf

import foveate
import tiny_models as zoo

from .oracle import picture
from .tiny import saved

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without images."""
    path = tmp_path_factory.mktemp("checkpoints") / "text"
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = zoo.llava().tokenizer
    tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(tokenizer), **small)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def configured(path: Path, **options: Any) -> Any:
    """A server's configuration, as ``vllm serve`` makes it."""
    from vllm.engine.arg_utils import EngineArgs

    settings = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
    return EngineArgs(model=str(path), **(settings | options)).create_engine_config()


def test_a_default_on_a_model_without_images_does_not_start(text_model: Path) -> None:
    with pytest.raises(foveate.FoveateError, match=r"LlamaForCausalLM reads no images in vLLM, .* without a default"):
        configured(text_model, hf_overrides={"foveate": {"keep": 0.5}})


def test_wrong_names_do_not_start(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(foveate.FoveateError, match="nothing reads 'foveat'"):
        configured(text_model, hf_overrides={"foveat": {"keep": 0.5}})
    monkeypatch.setenv("FOVEATE_KEEPS", "0.5")
    with pytest.raises(foveate.FoveateError, match="did you mean FOVEATE_KEEP"):
        configured(text_model)


def test_requests_to_a_model_without_images_are_refused(text_model: Path) -> None:
    from vllm.renderers import renderer_from_config

    renderer = renderer_from_config(configured(text_model))
    prompt = {"prompt_token_ids": [1, 5], "mm_processor_kwargs": {"foveate_keep": 0.5}}
    with pytest.raises(foveate.FoveateError, match="reads no images in vLLM"):
        renderer.render_cmpl([prompt])
    with pytest.raises(foveate.FoveateError, match="reads no images in vLLM"):
        asyncio.run(renderer.render_cmpl_async([prompt]))
    assert renderer.render_cmpl([{"prompt_token_ids": [1, 5]}])[0]["prompt_token_ids"] == [1, 5]


def test_requests_with_images_to_a_class_without_a_family_are_refused(tmp_path: Path) -> None:
    from vllm.renderers import renderer_from_config

    path = saved("qwen2_5_vl", tmp_path)
    with pytest.raises(foveate.FoveateError, match=r"start the server without a default"):
        configured(path, model_impl="transformers", hf_overrides={"foveate": {"keep": 0.5}})
    renderer = renderer_from_config(configured(path, model_impl="transformers"))
    image = {
        "prompt": "<|vision_start|><|image_pad|><|vision_end|>",
        "multi_modal_data": {"image": picture(84, 112, 0)},
    }
    assert renderer.render_cmpl([image])[0]["mm_placeholders"]["image"]
    with pytest.raises(foveate.FoveateError, match=r"as TransformersMultiModal\w+ here, .* leave foveate_keep out"):
        renderer.render_cmpl([{**image, "mm_processor_kwargs": {"foveate_keep": 0.5}}])


def test_hooks_are_hung_in_once(text_model: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from vllm.renderers.base import BaseRenderer

    from foveate.serving.vllm import register

    configured(text_model)
    hung = EngineArgs.create_engine_config, BaseRenderer.process_for_engine, BaseRenderer.process_for_engine_async
    register()
    assert hung == (
        EngineArgs.create_engine_config,
        BaseRenderer.process_for_engine,
        BaseRenderer.process_for_engine_async,
    )
    assert inspect.iscoroutinefunction(BaseRenderer.process_for_engine_async)
    assert AsyncEngineArgs.create_engine_config is EngineArgs.create_engine_config


def test_requests_for_embeddings_are_checked(text_model: Path) -> None:
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing

    configured(text_model)
    asked = SimpleNamespace(model_extra={"foveate_keep": 0.5})
    with pytest.raises(foveate.FoveateError, match="vLLM drops 'foveate_keep'"):
        asyncio.run(PoolingBaseServing._init_ctx(SimpleNamespace(), None, asked))
