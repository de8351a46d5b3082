"""How the models of the testbed are run in training: whole batches at once, all questions of a picture in one pass.

The modules are those of transformers; only what lies between them is arranged anew: pictures of any size go into the
tower of LLaVA, and packed questions behind one picture into the language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..testbed.procedural import CELL
from ..testbed.questions import LARGEST
from .testbed_batches import Packed


class LlavaStudent:
    """LLaVA: of a picture that is smaller than the canvas, only its own patches enter the tower, at their places."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.text = model.model.language_model

    def see(self, pixels: Tensor) -> Tensor:
        """What the language model reads of pixels (B, 1, 3, height, width): (B, N, d)."""
        tower, pictures = self.model.model.vision_tower, pixels[:, 0]
        embeddings = tower.embeddings
        patches = embeddings.patch_embedding(pictures).flatten(2).mT
        rows, columns = pictures.shape[-2] // CELL, pictures.shape[-1] // CELL
        full = LARGEST // CELL
        places = (torch.arange(rows)[:, None] * full + torch.arange(columns)).flatten().to(pixels.device)
        first = embeddings.class_embedding.expand(len(patches), 1, -1)
        places = torch.cat([places.new_zeros(1), 1 + places])
        hidden = tower.pre_layrnorm(torch.cat([first, patches], 1) + embeddings.position_embedding(places))
        hidden = tower.encoder(inputs_embeds=hidden).last_hidden_state
        return self.model.model.multi_modal_projector(hidden[:, 1:])

    def answer(self, visual: Tensor, packed: Packed, grid: tuple[int, int]) -> Tensor:
        """Logits of the tokens that follow each token of the packed questions: (B, T, vocabulary)."""
        embed = self.text.embed_tokens
        start = embed(torch.full((len(visual), 1), self.tokenizer.bos_token_id, device=visual.device))
        prefix = torch.cat([start, visual], 1)
        length = prefix.shape[1]
        before = torch.arange(length, device=visual.device).expand(len(visual), -1)
        hidden = self.text(
            inputs_embeds=torch.cat([prefix, embed(packed.ids)], 1),
            attention_mask=packed.mask(length),
            position_ids=torch.cat([before, length + packed.offsets], 1),
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden[:, length:])


def student(name: str, model: Any, tokenizer: Any) -> Any:
    """The student of a model's name."""
    return LlavaStudent(model, tokenizer)
