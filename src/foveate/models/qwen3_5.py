"""Qwen3.5, which Qwen3.6 and 3.8 share: three layers of linear attention to one of full attention, no DeepStack."""

from __future__ import annotations

from typing import Any, ClassVar

from .adapter import RecurrentState
from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class Qwen35Adapter(QwenVLAdapter):
    """``Qwen3_5ForConditionalGeneration``; the encoder-attention cue is read in the last block.

    Its layers of linear attention (GatedDeltaNet) have no attention that could be read, so methods inside the language
    model act at the next layer where they can. The time before each frame of a clip is text, which is never pruned.
    """

    model_type = "qwen3_5"
    class_name = "Qwen3_5ForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
    hybrid = True
    pixel_mean = pixel_deviation = (0.5, 0.5, 0.5)

    def recurrent_state(self, layer: int) -> RecurrentState | None:
        return state_of(self.text.layers[layer])


def state_of(layer: Any) -> RecurrentState | None:
    """The state that a decoder layer of Qwen3.5 carries; None for one that attends."""
    net = getattr(layer, "linear_attn", None)
    if net is None:
        return None
    recurrent = net.num_v_heads * net.head_k_dim * net.head_v_dim
    return RecurrentState(recurrent, net.conv_dim * net.conv_kernel_size)
