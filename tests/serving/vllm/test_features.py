"""What vLLM does besides answering: embeddings, classification, files of requests, quantised and shipped models."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

import foveate
from foveate.data import shipped_models
from foveate.testbed import scenes

from .engine import SETTINGS, answers, engine
from .oracle import STEPS, Case, Oracle, data_url, picture
from .test_engine import asked
from .tiny import saved

pytestmark = pytest.mark.vllm

LANDSCAPE, PORTRAIT = picture(84, 112, 0), picture(168, 56, 1)
CASES = [
    Case((LANDSCAPE,)),
    Case((LANDSCAPE,), asked=asked(0.5)),
    Case((PORTRAIT, LANDSCAPE), asked=asked(0.25, "idpruner")),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("qwen2_5_vl", tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle("qwen2_5_vl", checkpoint)


def copied(checkpoint: Path, name: str, weights: dict[str, Tensor], **config: Any) -> Path:
    """The same checkpoint with other weights, and further settings."""
    path = checkpoint.parent / name
    shutil.copytree(checkpoint, path)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(told | config))
    return path


def last_hidden(oracle: Oracle, case: Case) -> Tensor:
    """What the language model of transformers, pruned, makes of the last token of a prompt: (d,)."""
    given = {"text": [oracle.prompt(case)], "images": list(case.images), "return_tensors": "pt"}
    inputs = oracle.processor(**given, add_special_tokens=False)
    keep, method = case.asked.get("foveate_keep", 1.0), case.asked.get("foveate_method", "idpruner")
    with torch.no_grad(), foveate.prune(oracle.model, method, keep=keep):
        return oracle.model.model(**inputs).last_hidden_state[0, -1]


def pooled(llm: Any, oracle: Oracle, call: Callable[..., Any]) -> list[Any]:
    """What a pooling server makes of all cases, whose prompts are as long as in transformers."""
    prompts = [
        {
            "prompt": oracle.prompt(case),
            "multi_modal_data": {"image": list(case.images)},
            "mm_processor_kwargs": dict(case.asked),
        }
        for case in CASES
    ]
    found = call(prompts, use_tqdm=False)
    assert [len(one.prompt_token_ids) for one in found] == [oracle.answer(case).prompt for case in CASES]
    with pytest.raises(ValueError, match="did you mean 'idpruner'"):
        call({**prompts[0], "mm_processor_kwargs": asked(0.5, "idprunner")}, use_tqdm=False)
    return [one.outputs for one in found]


def test_embeddings(checkpoint: Path, oracle: Oracle) -> None:
    expected = [torch.nn.functional.normalize(last_hidden(oracle, case), dim=0) for case in CASES]
    with engine(checkpoint, runner="pooling", convert="embed") as llm:
        found = [torch.tensor(one.embedding) for one in pooled(llm, oracle, llm.embed)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # pruning can be seen


def test_classification(checkpoint: Path, oracle: Oracle) -> None:
    head = torch.randn(3, oracle.model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(3)) / 9
    weights = load_file(checkpoint / "model.safetensors") | {"language_model.score.weight": head}
    labels = {str(label): str(label) for label in range(3)}
    path = copied(checkpoint, "qwen2_5_vl_classes", weights, id2label=labels, label2id=labels)
    expected = [(head @ last_hidden(oracle, case)).softmax(0) for case in CASES]
    with engine(path, runner="pooling", convert="classify") as llm:
        found = [torch.tensor(one.probs) for one in pooled(llm, oracle, llm.classify)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def quantised(weight: Tensor, bits: int) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (M, N) as compressed-tensors writes it, in 4 bits by groups of 32 or in 8 by rows; and what it says."""
    most = 2 ** (bits - 1) - 1
    groups = weight.unflatten(1, (-1, 32 if bits == 4 else weight.shape[1]))
    scale = groups.abs().amax(-1) / most
    whole = (groups / scale[..., None]).round().clamp(-most - 1, most)
    says = (whole * scale[..., None]).flatten(1)
    if bits == 8:
        return {"weight": whole.flatten(1).to(torch.int8), "weight_scale": scale}, says
    nibbles = (whole.flatten(1).long() + 8).unflatten(1, (-1, 8)) << 4 * torch.arange(8)
    packed = nibbles.sum(-1)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}, says


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_checkpoints(checkpoint: Path, oracle: Oracle, bits: int) -> None:
    """Equal to the weights that they stand for, but for the rounding of inputs: to int8, or to bfloat16."""
    given, plain = {}, {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        plain[name], parts = weight, {"": weight}
        if name.startswith("model.layers.") and name.endswith("_proj.weight"):
            parts, plain[name] = quantised(weight, bits)
            name = name.removesuffix("weight")
        given |= {name + part: one.contiguous() for part, one in parts.items()}
    number = {"num_bits": bits, "type": "int", "symmetric": True}
    by = {"strategy": "group", "group_size": 32} if bits == 4 else {"strategy": "channel"}
    inputs = None if bits == 4 else {**number, "strategy": "token", "dynamic": True}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if bits == 4 else "int-quantized",
        "ignore": ["lm_head", "re:.*visual.*"],
        "config_groups": {"all": {"targets": ["Linear"], "weights": {**number, **by}, "input_activations": inputs}},
    }
    path = copied(checkpoint, f"qwen2_5_vl_w{bits}", given, quantization_config=config)
    same = Oracle("qwen2_5_vl", copied(checkpoint, f"qwen2_5_vl_from_w{bits}", plain))
    with engine(path, dtype="bfloat16" if bits == 4 else "float32") as llm:
        found = answers(llm, oracle, CASES)
        (modules,) = llm.apply_model(lambda model: {one.quant_method.__class__.__name__ for one in _projections(model)})
    assert modules == {"CompressedTensorsLinearMethod"}
    expected = [same.answer(case) for case in CASES]
    assert [one.prompt for one in found] == [one.prompt for one in expected]
    first = [(one.logprobs[0], other.logprobs[0]) for one, other in zip(found, expected, strict=True)]
    assert max(abs(one - other) for one, other in first) < 0.05
    assert abs(expected[0].logprobs[0] - expected[1].logprobs[0]) > 0.1


def _projections(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith("o_proj")]


def test_a_file_of_requests(checkpoint: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ``vllm run-batch``, with a default: a request that follows it, one that chooses, and a bad one."""
    for name, value in (SETTINGS | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}).items():
        monkeypatch.setenv(name, value)
    from vllm.entrypoints.launchers import run_batch
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    source, target = checkpoint.parent / "requests.jsonl", checkpoint.parent / "results.jsonl"
    content = [
        {"type": "image_url", "image_url": {"url": data_url(LANDSCAPE)}},
        {"type": "text", "text": CASES[0].text},
    ]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": STEPS}
    body |= {"allowed_token_ids": oracle.allowed, "ignore_eos": True, "return_token_ids": True}
    choices = [{}, asked(0.25, "idpruner"), asked(2.5)]
    source.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": str(number),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body | ({"mm_processor_kwargs": one} if one else {}),
                }
            )
            + "\n"
            for number, one in enumerate(choices)
        )
    )
    options = ["-i", str(source), "-o", str(target), "--model", str(checkpoint), "--served-model-name", "tiny"]
    options += ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "4", "--enforce-eager"]
    options += ["--trust-request-mm-kwargs", "--disable-log-stats"]
    options += ["--hf-overrides", json.dumps({"foveate": {"method": "divprune", "keep": 0.5}})]
    asyncio.run(run_batch.main(run_batch.make_arg_parser(FlexibleArgumentParser()).parse_args(options)))
    results = {one["custom_id"]: one for one in map(json.loads, target.read_text().splitlines())}
    for number, equal in {"0": asked(0.5), "1": choices[1]}.items():
        told, expected = results[number]["response"]["body"], oracle.answer(Case((LANDSCAPE,), asked=equal))
        found = told["choices"][0]["token_ids"], told["usage"]["prompt_tokens"]
        assert found == (expected.tokens, expected.prompt)
    assert "out of range" in json.dumps(results["2"])


@pytest.mark.parametrize("name", ["testbed-llava", "testbed-qwen2.5-vl"])
def test_the_shipped_models(name: str) -> None:
    """As transformers 5 saved them, with their scorers: the answer of the scene, and the tokens of transformers."""
    from vllm import SamplingParams

    path = shipped_models()[name]
    model = tf.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    processor = tf.AutoProcessor.from_pretrained(path)
    positions = "original" if "qwen" in name else "compact"
    (scene, question), *_ = [(scene, one) for scene in scenes() for one in scene.questions]
    said = [{"type": "image"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[scene.image], return_tensors="pt")
    with engine(path, limit_mm_per_prompt={"image": 1}) as llm:
        for keep in (1.0, 0.5, 0.25):
            request = {"prompt": prompt, "multi_modal_data": {"image": scene.image}}
            request |= {"mm_processor_kwargs": {"foveate_keep": keep}}
            (found,) = llm.generate(request, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
            with torch.no_grad(), foveate.prune(model, "idpruner", keep=keep, positions=positions) as pruning:
                expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
                length = pruning.report().prompt_tokens[0]
            assert found.outputs[0].token_ids == expected[inputs["input_ids"].shape[1] :].tolist()
            assert len(found.prompt_token_ids) == length
            assert keep < 1.0 or found.outputs[0].text.strip() == question.answer
