"""Prompts with still images made from an image processor and a tokenizer alone.

transformers' own processors of video models need torchvision even where no video is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..models import ModelAdapter


class StillProcessor:
    """Stands in for a model's processor, for single chat prompts with images.

    Args:
        tokenizer: its chat template writes one placeholder for each image.
        image_processor: of the same checkpoint.
        adapter: knows the placeholder and how many tokens each image takes.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, adapter: ModelAdapter) -> None:
        self.tokenizer, self.image_processor, self._adapter = tokenizer, image_processor, adapter
        self.chat_template = tokenizer.chat_template
        self._image_id = adapter.token_ids()["image"]
        self.image_token = str(tokenizer.convert_ids_to_tokens(self._image_id))
        self.batch_decode = tokenizer.batch_decode

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> dict[str, Tensor]:
        """Model inputs of one conversation, as transformers' processors return them."""
        content = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in content if part["type"] == "image"]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self(images=images, text=[text])

    def __call__(self, images: Sequence[Any], text: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """Model inputs of one prompt (1, L) that holds a placeholder for each of its images."""
        media = dict(self.image_processor(images=list(images), return_tensors="pt"))
        head, *rest = text[0].split(self.image_token)
        grids = self._adapter.grids(media)["image"]
        filled = head + "".join(self.image_token * len(grid) + part for grid, part in zip(grids, rest, strict=True))
        encoded = dict(self.tokenizer([filled], return_tensors="pt", add_special_tokens=False))
        kinds = (encoded["input_ids"] == self._image_id).long()  # Qwen-VL reads its 3-D positions off these
        return {**encoded, **media, "mm_token_type_ids": kinds}
