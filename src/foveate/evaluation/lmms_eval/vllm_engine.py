"""Answers prompts with vLLM and foveate's plugin in it; as many at once as they are handed over together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...budget import Budget
from ...data.limits import check_question, fit_picture, limit_pixels
from ...data.prompts import Prompt, describe_clip, write_plainly
from ...errors import ConfigError, MethodError, ModelError, near_miss
from ...tokens import Grid
from ..baselines import shrink_grid
from ..runs import BLIND, DOWNSAMPLE
from .accounting import Answer
from .arguments import PruningChoice
from .generation import GenerationOptions
from .media import hide_pictures

_OWN_TEXT = "prompt"  # methods that choose by text read that of the prompt, as in transformers
_PLUGIN = "foveate"


class VllmEngine:
    """An engine of vLLM in this process.

    Args:
        name: of the model, as vLLM takes it.
        choice: how it answers.
        options: further arguments of ``vllm.LLM``.
        min_pixels: of a picture, at least; None leaves it to the checkpoint.
        max_pixels: likewise, at most.

    Raises:
        FoveateError: where vLLM is missing, has no such argument, or cannot prune so.
    """

    def __init__(
        self,
        name: str,
        choice: PruningChoice,
        options: Mapping[str, Any],
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.choice = choice
        check_options(options)
        import vllm
        from transformers import AutoProcessor

        revision = {"revision": options["revision"]} if "revision" in options else {}
        self.processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False, **revision)
        limit_pixels(self.processor, max_pixels, min_pixels)
        given: dict[str, Any] = {"disable_log_stats": False, **options}
        if choice.config is not None:
            overrides = given.pop("hf_overrides", {})
            given["hf_overrides"] = {**overrides, _PLUGIN: {"query": _OWN_TEXT, **choice.config.to_dict()}}
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        if limits := {name: value for name, value in pixels.items() if value is not None}:
            given["mm_processor_kwargs"] = {**given.get("mm_processor_kwargs", {}), **limits}
        self.llm: Any = vllm.LLM(model=name, **given)
        config = self.llm.llm_engine.model_config.hf_config
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        self._visual = {getattr(config, one) for one in names if getattr(config, one, None) is not None}

    def answer(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Answer]:
        """The answer to each prompt.

        Raises:
            FoveateError: for a prompt that the model cannot be asked, and for beam search.
        """
        if options.num_beams > 1:
            raise ConfigError(
                f"num_beams={options.num_beams}: vLLM answers without beams here; use --model foveate, or num_beams=1."
            )
        before = [0.0] * len(prompts)
        if self.choice.run.label == BLIND:
            prompts = [hide_pictures(prompt) for prompt in prompts]
        started, counted = time.perf_counter(), _counted()
        if self.choice.run.label == DOWNSAMPLE:
            shrunken = [self._shrink(prompt, self.choice.run.budget) for prompt in prompts]
            prompts, before = [one for one, _ in shrunken], [whole for _, whole in shrunken]
        requests = [self._request(prompt) for prompt in prompts]
        outputs = self.llm.generate(requests, self._sampling(options), use_tqdm=False)
        seconds = (time.perf_counter() - started) / len(prompts)
        kept = [sum(token in self._visual for token in output.prompt_token_ids) for output in outputs]
        if not any(before):
            whole = _counted() - counted
            before = [whole * own / sum(kept) if sum(kept) else 0.0 for own in kept]
        answers = []
        for output, whole, own in zip(outputs, before, kept, strict=True):
            (one,) = output.outputs
            costs = {"visual_tokens_before": float(whole), "visual_tokens": float(own), "seconds": seconds}
            costs["average_visual_tokens"] = float(own)  # the plugin prunes before the language model
            if (latency := getattr(output.metrics, "first_token_latency", 0.0)) > 0:
                costs["first_token_seconds"] = latency
            text = options.cut(one.text)
            answers.append(Answer(text, len(output.prompt_token_ids), len(one.token_ids), costs))
        return answers

    def close(self) -> None:
        """Let go of the engine and its memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm = None
        cleanup_dist_env_and_memory()

    def _sampling(self, options: GenerationOptions) -> Any:
        """From the checkpoint's own defaults on, as ``generate`` of transformers has them."""
        params = self.llm.get_default_sampling_params()
        params.max_tokens, params.stop = options.max_new_tokens, list(options.until)
        if options.repetition_penalty is not None:
            params.repetition_penalty = options.repetition_penalty
        if not options.sampling:
            params.temperature, params.top_p, params.top_k = 0.0, 1.0, 0
        else:
            given = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
            for name, value in given.items():
                if value is not None:
                    setattr(params, name, value)
        return type(params)(**{name: getattr(params, name) for name in _SAMPLED})

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        for text in prompt.texts:
            check_question(self.processor, text)
        pictures = [fit_picture(self.processor, picture) for picture in prompt.pictures]
        messages = prompt._replace(pictures=pictures).conversation()
        if getattr(self.processor, "chat_template", None):
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        elif prompt.video:
            raise ModelError("this model's processor takes images, not clips; choose another task.")
        else:
            text = write_plainly(self.processor, messages)
        shown: dict[str, Any] = {"video": _clip(pictures)} if prompt.video else {"image": pictures} if pictures else {}
        return {"prompt": text, **({"multi_modal_data": shown} if shown else {})}

    def _shrink(self, prompt: Prompt, budget: Budget) -> tuple[Prompt, float]:
        """The prompt with pictures of as many tokens as the budget leaves, and how many tokens they had."""
        images = self.processor.image_processor
        if "image_grid_thw" not in getattr(images, "model_input_names", ()):
            raise MethodError(
                f"downsample: {type(images).__name__} does not size pictures by their pixels, so vLLM cannot show "
                "smaller ones; use --model foveate."
            )
        small, whole = [], 0.0
        frames = -(-len(prompt.pictures) // images.temporal_patch_size) if prompt.video else 1
        cell = images.patch_size * images.merge_size
        for place, picture in enumerate(prompt.pictures):
            rows, columns = self._grid(picture)
            size = shrink_grid(grid := Grid(rows, columns, frames), budget.count(rows * columns * frames))
            small.append(picture.resize((cell * size.columns, cell * size.rows), Image.Resampling.BICUBIC))
            whole += len(grid) if not prompt.video or place == 0 else 0
            made = self._grid(small[-1])
            if made[0] * made[1] > size.rows * size.columns:
                raise MethodError(
                    f"downsample: the processor enlarges small pictures, to {made[0] * made[1]} tokens where "
                    f"{budget.label} of {rows * columns} are allowed; lower min_pixels."
                )
        return prompt._replace(pictures=small), whole

    def _grid(self, picture: Image.Image) -> tuple[int, int]:
        """Rows and columns of a picture's tokens."""
        images = self.processor.image_processor
        patches = images(images=[fit_picture(self.processor, picture)], return_tensors="pt")["image_grid_thw"][0]
        return int(patches[1]) // images.merge_size, int(patches[2]) // images.merge_size


_SAMPLED = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "stop", "seed")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError where vLLM is missing or its engine has no such argument."""
    import dataclasses

    try:
        from vllm import EngineArgs
    except ImportError as error:
        raise ConfigError(f"vLLM cannot be imported ({error}); pip install vllm, or use --model foveate.") from None
    known = {field.name for field in dataclasses.fields(EngineArgs)} - {"model"}
    for name in options:
        if name not in known:
            hint = near_miss(name, known).split(" Known:")[0].rstrip(".?")
            raise ConfigError(f"--model_args has an unknown argument {name!r}{hint}, and neither has vLLM's engine.")


def _clip(frames: Sequence[Image.Image]) -> tuple[Any, dict[str, Any]]:
    """Frames (T, H, W, 3) as vLLM takes them, at the times of `describe_clip`."""
    known = {**describe_clip(len(frames)), "video_backend": "opencv", "do_sample_frames": False}
    return np.stack([np.asarray(frame) for frame in frames]), known


def _counted() -> float:
    """Visual tokens before pruning of all prompts so far, as foveate's plugin counts them in this process."""
    import prometheus_client

    name = "foveate_visual_tokens_total"
    families = prometheus_client.REGISTRY.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
