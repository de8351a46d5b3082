"""foveate as a model of lmms-eval, whose benchmarks then run pruned: ``lmms-eval --model foveate --model_args ...``.

lmms-eval finds `manifests` by foveate's entry point in its group ``lmms_eval.models``. Only `models` and `media` import
lmms-eval; reading its output (`outputs`) needs none.
"""

from __future__ import annotations

from typing import Any

TRANSFORMERS, VLLM = "foveate", "foveate_vllm"
_MODELS = "foveate.evaluation.lmms_eval.models"


def manifests() -> list[Any]:
    """What lmms-eval registers: each of the two models for chat messages, and for ``--force_simple``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    names = {TRANSFORMERS: "Foveate", VLLM: "FoveateVllm"}
    return [
        ModelManifest(model_id=name, simple_class_path=f"{_MODELS}.{cls}Simple", chat_class_path=f"{_MODELS}.{cls}")
        for name, cls in names.items()
    ]


__all__ = ["TRANSFORMERS", "VLLM", "manifests"]
