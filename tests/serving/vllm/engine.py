"""A vLLM engine in this process, on the CPU, with the plugin."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .oracle import STEPS, Answer, Case, Oracle

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@contextlib.contextmanager
def engine(path: Path, **options: Any) -> Iterator[Any]:
    """A small ``vllm.LLM`` in float32, gone afterwards."""
    os.environ.update(SETTINGS)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 4,
        "block_size": 32,
        "enforce_eager": True,
        "disable_log_stats": True,
        "seed": 0,
        "limit_mm_per_prompt": {"image": 2, "video": 1} if path.name.startswith(("qwen", "glm")) else {"image": 2},
    }
    # vLLM looks at what all modules hold, and stumbles over this one, which numba loads for drafts by ngram.
    stumbling = sys.modules.pop("llvmlite.binding.ffi", None)
    llm = LLM(model=str(path), **(settings | options))
    if stumbling is not None:
        sys.modules["llvmlite.binding.ffi"] = stumbling
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()


def answers(llm: Any, oracle: Oracle, cases: list[Case]) -> list[Answer]:
    """All cases in one batch."""
    found = []
    for output in outputs(llm, oracle, cases):
        (one,) = output.outputs
        steps = zip(one.logprobs, one.token_ids, strict=True)
        logprobs = [step[token].logprob for step, token in steps]
        found.append(Answer(list(one.token_ids), logprobs, len(output.prompt_token_ids)))
    return found


def outputs(llm: Any, oracle: Oracle, cases: list[Case], uuids: list[str] | None = None) -> list[Any]:
    """What vLLM returns for all cases in one batch.

    Args:
        uuids: names that the client gives to the images of each case.
    """
    requests = []
    for case in cases:
        data: dict[str, Any] = {}
        if case.images:
            data["image"] = list(case.images)
        if case.clip is not None:
            data["video"] = case.clip
        if case.sound is not None:
            data["audio"] = [(case.sound, 16000)]
        requests.append(
            {"prompt": oracle.prompt(case), "multi_modal_data": data, "mm_processor_kwargs": dict(case.asked)}
            | ({} if uuids is None else {"multi_modal_uuids": {"image": uuids}})
        )
    return list(llm.generate(requests, sampling(oracle), use_tqdm=False))


def sampling(oracle: Oracle) -> Any:
    """The oracle's: greedy, so many tokens of those that it may say."""
    from vllm import SamplingParams

    # Not by logit_bias, which vLLM does not allow with drafts.
    allowed = oracle.allowed
    return SamplingParams(max_tokens=STEPS, temperature=0, logprobs=1, ignore_eos=True, allowed_token_ids=allowed)
