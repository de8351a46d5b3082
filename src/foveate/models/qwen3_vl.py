"""Qwen3-VL: like Qwen2-VL, with DeepStack and with timestamps between the frames of a clip."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from .adapter import DeepStack
from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class Qwen3VLAdapter(QwenVLAdapter):
    """``Qwen3VLForConditionalGeneration``; the encoder-attention cue is read in the last block.

    A clip is one image of several frames although its tokens are not one run: the tokenizer writes the time before
    each frame, and that text is never pruned.
    """

    model_type = "qwen3_vl"
    class_name = "Qwen3VLForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl")
    pixel_mean = pixel_deviation = (0.5, 0.5, 0.5)

    @property
    def deepstack(self) -> DeepStack:
        return DeepStack("visual_pos_masks", "deepstack_visual_embeds", len(self.vision.deepstack_merger_list))

    def token_modules(self) -> list[nn.Module]:
        return [self.projector, *self.vision.deepstack_merger_list]

    def block_before(self, module: nn.Module) -> int:
        mergers = list(self.vision.deepstack_merger_list)
        if module in mergers:
            return int(self.vision.deepstack_visual_indexes[mergers.index(module)])
        return super().block_before(module)
