"""Servers whose default prunes inside the vision encoder, and what transformers makes of their requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import foveate

from .oracle import Case

# Of each family what chooses inside the encoder, at which block, and what before the language model: methods that
# listen to the encoder, before tokens left or behind it, one that merges, and blocks with windows and without.
_STAGES = {
    "qwen2_vl": ("avgpool", 1, "idpruner"),
    "qwen2_5_vl": ("divprune", 0, "idpruner"),
    "qwen3_vl": ("idpruner", 1, "divprune"),
    "qwen3_vl_moe": ("idpruner", 2, "divprune"),
    "qwen3_5": ("avgpool", 0, "divprune"),
    "qwen3_5_moe": ("divprune", 1, "scope"),
    "qwen2_5_omni": ("divprune", 1, "divprune"),
    "glm4v": ("divprune", 1, "idpruner"),
    "glm4v_moe": ("idpruner", 1, "divprune"),
    "glm_ocr": ("avgpool", 0, "divprune"),
}


def stages_of(name: str) -> list[Any]:
    """The methods of the tiny model's server."""
    inner, block, last = _STAGES[name]
    return [foveate.InEncoder(inner, block), foveate.get_method(last)]


def overrides_for(name: str, keep: Any = 1.0) -> dict[str, Any]:
    """Options of an engine; with a `keep` of 1.0 only requests that say how much is to stay are pruned."""
    if name not in _STAGES:
        return {}
    return {"hf_overrides": {"foveate": foveate.PruningConfig(stages_of(name), keep=keep).to_dict()}}


def in_transformers(case: Case, name: str, keep: Any = 1.0) -> Case:
    """The same request with the server's methods and budgets as its own, where it takes them."""
    if name not in _STAGES or "foveate_method" in case.asked or case.asked.get("foveate_keep", keep) == 1.0:
        return case
    return replace(case, asked={"foveate_keep": keep, **case.asked, "foveate_method": stages_of(name)})
