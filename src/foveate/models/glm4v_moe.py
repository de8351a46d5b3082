"""GLM-4.5V and the large GLM-4.6V: GLM-4.1V with experts, one of them shared, in all decoder layers but the first."""

from __future__ import annotations

from typing import ClassVar

from ..tokens import Cue, Source
from .glm4v import Glm4vAdapter
from .registry import register_model


@register_model
class Glm4vMoeAdapter(Glm4vAdapter):
    """``Glm4vMoeForConditionalGeneration``; the vision encoder is GLM-4.1V's."""

    model_type = "glm4v_moe"
    class_name = "Glm4vMoeForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("glm4v", *Glm4vAdapter.relatives)
    cues = Glm4vAdapter.cues | Cue.of(Source.ROUTER)
