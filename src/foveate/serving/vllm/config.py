"""The pruning of one model on one server: its settings, family and methods, and what the server does not allow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import ModelError, RequestError
from ...methods import ModelFacts
from ...methods.toolkit.in_encoder import InEncoder
from ...tokens import Cue, Source
from .bound_methods import BoundMethods
from .family import Family
from .request import PruneRequest
from .settings import ServerSettings, find_ours

# Ways of vLLM to guess the next tokens from the tokens before them, without a model that would read positions.
_DRAFTS_OF_TOKENS = ("ngram", "ngram_gpu", "suffix")
LIMITS_KEY = "foveate_limits"  # the attribute of the model's config under which start-up leaves what it found


class ServingConfig:
    """What the processor (in the API process) and the model (in the engine) share.

    Args:
        family_class: of the model.
        model_config: vLLM's.
        model: vLLM's model in the engine, None elsewhere.

    Raises:
        FoveateError: when the server's settings are wrong, or ask for what its set-up rules out.
    """

    def __init__(self, family_class: type[Family], model_config: Any, model: Any = None) -> None:
        config = model_config.hf_config
        limits: Mapping[str, str] = getattr(config, LIMITS_KEY, {})
        check_processor_defaults(getattr(model_config, "multimodal_config", None))
        self.settings = ServerSettings.read(getattr(config, "foveate", None), os.environ)
        self.refusal: str | None = limits.get("all")
        self.family: Family | None = None
        try:
            self.family = family_class(config, model)
        except ModelError as error:
            self.refusal = str(error)
        else:
            self.family.adapter.encoder_queries = self.settings.encoder_queries
            self.family.model_config = model_config
        self.settings.check_positions(family_class.mrope)
        text = config.get_text_config()
        lineage = family_class.adapter_class.lineage()
        facts = ModelFacts(str(model_config.model), text.hidden_size, text.num_hidden_layers, lineage)
        given = frozenset(cue for cue in Cue if cue.of_question)
        given |= frozenset() if self.family is None else self.family.adapter.cues
        missing = {cue: f"{family_class.adapter_class.class_name} cannot give it." for cue in set(Cue) - given}
        missing |= {cue: f"{cue.not_in_vllm}; use foveate.prune in transformers." for cue in Cue if cue.not_in_vllm}
        if "encoder" in limits:
            missing |= dict.fromkeys((Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES), limits["encoder"])
        self.methods = BoundMethods(facts, missing, self.settings.hyperparameters)
        self.inside = self._bind_inside(limits.get("encoder"))
        self.resolve({})  # a default that cannot work stops the server

    def _bind_inside(self, limit: str | None) -> tuple[InEncoder, ...]:
        """The methods inside the vision encoder, bound.

        Args:
            limit: why the encoder cannot be observed, if so.

        Raises:
            FoveateError: for what cannot work in this server.
        """
        family = self.family
        if family is None or not self.settings.inside:
            return ()
        instead = "use a method that prunes before the LLM, such as 'idpruner'."
        if limit is not None:
            reason = limit.partition(";")[0]
            raise ModelError(f"nothing can leave inside the vision encoder in this server: {reason}; {instead}")
        if family.whole_encoder is not None:
            raise ModelError(
                f"{family.adapter.class_name} cannot be pruned inside its vision encoder in vLLM, because "
                f"{family.whole_encoder}; {instead}"
            )
        width, blocks = family.adapter.vision_width, family.adapter.model.config.vision_config.depth
        stages = self.settings.inside
        made = tuple(self.methods.add_inside(stage, width, blocks, i > 0) for i, stage in enumerate(stages))
        if self.settings.method != stages[-1].name:
            self.methods.try_behind(self.settings.method)
        return made

    @property
    def known_family(self) -> Family:
        """The family, where requests can be pruned."""
        assert self.family is not None
        return self.family

    @property
    def prunes(self) -> bool:
        """Whether requests can be pruned at all."""
        return self.refusal is None

    def resolve(self, asked: Mapping[str, Any]) -> PruneRequest | None:
        """What to do for a request's keyword arguments; None when everything is kept.

        Raises:
            FoveateError: for what cannot be done, before any image is touched.
        """
        family = Family if self.family is None else self.family
        request = self.settings.resolve(asked, family.clip_scopes[0])
        if request is not None:
            if self.refusal is not None:
                raise ModelError(self.refusal)
            method = self.methods.get(request.method)
            if Cue.TEXT_EMBEDDINGS not in method.needs:
                if asked.get("foveate_query") is not None:
                    raise RequestError(f"{method.name} chooses by the image alone; leave out foveate_query.")
                request = replace(request, query=None)
            elif request.query is None:
                raise ModelError(
                    f"{method.name} needs the {Cue.TEXT_EMBEDDINGS.value}, but {Source.PROMPT.not_in_vllm}; give the "
                    "question as foveate_query, or foveate_query='prompt' for the prompt's own text."
                )
        return request


def check_processor_defaults(multimodal: Any) -> None:
    """Raise RequestError where vLLM's multimodal configuration carries defaults that are meant for foveate."""
    for key, _ in find_ours(getattr(multimodal, "mm_processor_kwargs", None) or {}):
        raise RequestError(
            f"vLLM hands --mm-processor-kwargs, and with them {key!r}, to transformers, which does not prune; "
            """give defaults by --hf-overrides '{"foveate": {"method": "idpruner", "keep": 0.25}}'."""
        )


def limits_of(vllm_config: Any, mrope: bool) -> dict[str, str]:
    """What the configuration of a server rules out, as sentences: ``"all"`` pruning, or cues of the ``"encoder"``."""
    limits: dict[str, str] = {}
    multimodal, parallel = vllm_config.model_config.multimodal_config, vllm_config.parallel_config
    compilation, drafts = vllm_config.compilation_config, vllm_config.speculative_config
    again = "start the server without it to prune images."
    if multimodal is not None and multimodal.is_multimodal_pruning_enabled():
        limits["all"] = f"vLLM's own video pruning (--video-pruning-rate) is on; {again}"
    elif getattr(compilation, "cudagraph_mm_encoder", False):
        limits["all"] = f"the vision encoder runs in CUDA graphs (cudagraph_mm_encoder), past the pruning; {again}"
    elif getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        limits["all"] = f"LoRA in the vision tower counts an image's tokens by its placeholders; {again}"
    elif mrope and parallel.pipeline_parallel_size > 1:
        limits["all"] = f"pipeline parallelism does not hand M-RoPE positions of pruned images to later ranks; {again}"
    elif mrope and getattr(parallel, "enable_dbo", False):
        limits["all"] = f"dual batch overlap (--enable-dbo) cuts a step in two, but not its positions; {again}"
    elif mrope and drafts is not None and getattr(drafts, "method", None) not in _DRAFTS_OF_TOKENS:
        limits["all"] = (
            f"speculative decoding is on ({getattr(drafts, 'method', None)}), and its draft model cannot read the "
            f"positions of pruned images; use {' or '.join(map(repr, _DRAFTS_OF_TOKENS))}, or {again}"
        )
    if multimodal is not None and multimodal.mm_encoder_tp_mode == "data":
        limits["encoder"] = (
            "with mm_encoder_tp_mode='data' each rank encodes other images; use 'weights', or a method that reads "
            "features only, such as 'divprune'."
        )
    elif getattr(compilation, "compile_mm_encoder", False):
        limits["encoder"] = (
            "a compiled vision encoder (compile_mm_encoder) cannot be listened to; start the server without it, or use "
            "a method that reads features only, such as 'divprune'."
        )
    return limits
