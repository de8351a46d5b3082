"""Answer the chunks of a batch with vLLM engines, through Ray Data's own processor for them (`ray.data.llm`).

Cores read rows and pictures and write prompts, as `foveate.data.prompts` does for transformers; engines answer them,
each row as soon as there is room; foveate's plugin prunes inside the engines. Pictures travel from the one to the other
through Ray's object store.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...cluster import Workers
from .answering import FATAL, explain, read_rows
from .job import Batch
from .results import Result
from .rows import BatchError, Place, RowError, Source

_ERROR = "__inference_error__"  # Ray's column: rows with an error pass its stages by
_LIGHT = {"num_cpus": 0.1}  # stages that only hand rows on


def check_engine(pruning: Mapping[str, Any]) -> None:
    """Raise an error where vLLM is not installed, or cannot prune so.

    Raises:
        FoveateError: with a sentence that says why.
    """
    from ..vllm.settings import ServerSettings

    try:
        import ray.data.llm  # noqa: F401
        import vllm  # noqa: F401
    except ImportError as error:
        raise BatchError(
            f"vLLM engines cannot be had ({error}); install vLLM, see docs/guides/many_machines.md, or give "
            "--engine transformers."
        ) from None
    ServerSettings.read(pruning, {})


def answer_chunks(dataset: Any, batch: Batch, workers: Workers, retries: int, alone: bool = False) -> Any:
    """A dataset of results as JSON, in the columns of `Worker`, from one of chunks.

    Args:
        dataset: of chunks.
        batch: that they are of.
        workers: to divide them among.
        retries: how often rows are asked again at which an engine died.
        alone: let no row be in an engine together with another.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from ..vllm.settings import OWN_TEXT

    extra = dict(batch.vllm)
    # Methods that choose by text read that of the prompt, as in transformers.
    overrides = {**extra.pop("hf_overrides", {}), "foveate": {"query": OWN_TEXT, **batch.pruning}}
    of_each = extra.get("tensor_parallel_size", 1) * extra.get("pipeline_parallel_size", 1)
    engines = max(1, workers.number // of_each)
    options: dict[str, Any] = {}
    share = 0.0
    if not workers.gpus:  # half of the cores stay for the other stages, which would wait for one forever
        share = max(0.5, workers.cpus // 2)
        options["placement_group_config"] = {"bundle_per_worker": {"CPU": share}}
    readers, cores = _readers(workers.number * workers.cpus - engines * of_each * share)
    if alone:
        options |= {"max_concurrent_batches": 1, "max_tasks_in_flight_per_actor": 1}
    config = vLLMEngineProcessorConfig(
        model_source=batch.path,
        engine_kwargs={**extra, "hf_overrides": overrides},
        concurrency=(engines, engines),
        batch_size=1 if alone else batch.chunk,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        **options,
    )
    processor = build_processor(config, preprocess_map_kwargs=_LIGHT, postprocess_map_kwargs=_LIGHT)
    _bound_retries(processor, retries)
    prompts = dataset.map_batches(
        Prompts,
        fn_constructor_args=(batch.source, batch.path, batch.max_new_tokens),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=readers),
        num_cpus=cores,
    )
    return processor(prompts).map(to_result, **_LIGHT)


def _readers(spare: float) -> tuple[int, float]:
    """How many actors read rows and pictures, and the cores of each: half of those that engines leave."""
    return max(1, int(spare)), min(0.5, spare / 2)


def _bound_retries(processor: Any, retries: int) -> None:
    """Let Ray ask rows so often again at which an engine died, which is without end unless it is told otherwise."""
    arguments = processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs
    # Engines of several ranks have a function of Ray's here already, which says where to put them.
    arguments["ray_remote_args_fn"] = functools.partial(_remote_args, arguments.get("ray_remote_args_fn"), retries)


def _remote_args(others: Callable[[], dict[str, Any]] | None, retries: int) -> dict[str, Any]:
    return {**(others() if others else {}), "max_task_retries": retries}


class Prompts:
    """Turns chunks into requests of vLLM, for `ray.data.Dataset.map_batches`."""

    def __init__(self, source: Source, path: str, max_new_tokens: int) -> None:
        from transformers import AutoConfig, AutoProcessor

        self.source, self.sampling = source, {"temperature": 0.0, "max_tokens": max_new_tokens}
        self.processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        self.image_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", -1)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """The columns of requests, of ``chunk``: lists of places as JSON."""
        places = [Place.from_list(one) for chunk in batch["chunk"] for one in json.loads(chunk)]
        rows = [self._row(place, question) for place, question in zip(places, self._read(places), strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _read(self, places: Sequence[Place]) -> list[Any]:
        return read_rows(self.source, places)

    def _row(self, place: Place, question: Any) -> dict[str, Any]:
        row: dict[str, Any] = {"place": json.dumps(place.to_list()), "id": "", "prompt": "", "multimodal_data": None}
        row |= {"sampling_params": dict(self.sampling), "image_id": self.image_id, _ERROR: ""}
        if isinstance(question, str):
            return {**row, _ERROR: question}
        try:
            prompt, pictures = self._prompt(question)
        except Exception as error:  # processors raise nearly everything
            return {**row, _ERROR: explain(error)}
        return {**row, "id": question.id, "prompt": prompt, "multimodal_data": {"image": pictures}}

    def _prompt(self, question: Any) -> tuple[str, list[Any]]:
        from ...data.limits import check_question, fit_picture

        check_question(self.processor, question.text)
        if question.video:
            raise RowError("clips are not answered by vLLM engines here; give --engine transformers.")
        pictures = [fit_picture(self.processor, picture) for picture in question.pictures]
        if not getattr(self.processor, "chat_template", None):
            return f"{self.processor.image_token}\n" * len(pictures) + question.text, pictures
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question.text}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), pictures


def to_result(row: Mapping[str, Any]) -> dict[str, str]:
    """The result of a row that went through the engine, or passed it by; what no row can help has its own column."""
    try:
        return {"result": _to_result(row).to_json(), FATAL: ""}
    except Exception as error:  # raised, it would be taken for the death of an engine
        return {"result": "", FATAL: explain(error)}


def _to_result(row: Mapping[str, Any]) -> Result:
    place = Place.from_list(json.loads(row["place"]))
    if row[_ERROR]:
        return Result.failure(place, " ".join(str(row[_ERROR]).split()))
    visual = sum(int(one) == row["image_id"] for one in row["prompt_token_ids"])
    return Result(
        place.row,
        place.where,
        row["id"],
        str(row["generated_text"]).strip(),
        None,
        None,
        visual,
        int(row["num_input_tokens"]),
        int(row["num_generated_tokens"]),
        float(row["time_taken_llm"]),
        place.key,
    )
