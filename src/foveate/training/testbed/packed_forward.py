"""The forward of the testbed's models in training: whole batches at once, all questions of a picture in one pass.

The modules are those of transformers; only what lies between them is arranged anew: pictures of any size go into the
tower of LLaVA, windows of many pictures into that of Qwen2.5-VL at once, packed questions into the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from ...testbed.procedural import CELL
from ...testbed.questions import LARGEST
from .batches import Packed


class Student(ABC):
    """A model in training, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.text = model.model.language_model

    @abstractmethod
    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """What becomes of pixels (B, frames, 3, height, width).

        Returns:
            What the language model reads, (B, N, d) in raster order, and the tower's class token (B, d), if it has one.
        """

    @abstractmethod
    def frame(self, frames: int, grid: tuple[int, int]) -> tuple[list[int], list[int], Tensor]:
        """Ids before and after the visual tokens, and the positions of all of them and of the first token after them.

        Positions are those of one row of the batch: (length + 1,), or (3, length + 1) where they have three parts.
        """

    def answer(self, visual: Tensor, packed: Packed, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Of each token of the packed questions the logits of what follows, and its state halfway.

        Shapes are (B, T, vocabulary) and (B, T, d).
        """
        embed = self.text.embed_tokens
        before, after, places = self.frame(visual.shape[1] // (grid[0] * grid[1]), grid)

        def embed_ids(ids: list[int]) -> Tensor:
            return embed(torch.tensor(ids, dtype=torch.long, device=visual.device)).expand(len(visual), -1, -1)

        prefix = torch.cat([embed_ids(before), visual, embed_ids(after)], 1)
        length = prefix.shape[1]
        places = places.to(visual.device)[..., None, :].expand(*places.shape[:-1], len(visual), -1)
        found = self.text(
            inputs_embeds=torch.cat([prefix, embed(packed.ids)], 1),
            attention_mask=packed.mask(length),
            position_ids=torch.cat([places[..., :-1], places[..., -1:] + packed.offsets], -1),
            use_cache=False,
            output_hidden_states=True,
        )
        halfway = found.hidden_states[(len(self.text.layers) + 1) // 2]
        return self.model.lm_head(found.last_hidden_state[:, length:]), halfway[:, length:]


class LlavaStudent(Student):
    """LLaVA: of a picture that is smaller than the canvas, only its own patches enter the tower, at their places."""

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        tower, pictures = self.model.model.vision_tower, pixels[:, 0]
        embeddings = tower.embeddings
        patches = embeddings.patch_embedding(pictures).flatten(2).mT
        rows, columns = pictures.shape[-2] // CELL, pictures.shape[-1] // CELL
        places = (torch.arange(rows)[:, None] * (LARGEST // CELL) + torch.arange(columns)).flatten()
        places = torch.cat([places.new_zeros(1), 1 + places]).to(pixels.device)
        first = embeddings.class_embedding.expand(len(patches), 1, -1)
        hidden = tower.pre_layrnorm(torch.cat([first, patches], 1) + embeddings.position_embedding(places))
        hidden = tower.encoder(inputs_embeds=hidden).last_hidden_state
        return self.model.model.multi_modal_projector(hidden[:, 1:]), hidden[:, 0]

    def frame(self, frames: int, grid: tuple[int, int]) -> tuple[list[int], list[int], Tensor]:
        return [self.tokenizer.bos_token_id], [], torch.arange(grid[0] * grid[1] + 2)


class QwenStudent(Student):
    """Qwen2.5-VL: the windows of all pictures of a batch, which are of one size, attend at once."""

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        tower = self.model.model.visual
        config = tower.config
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, config.temporal_patch_size, -1, -1, -1)
        batch, frames, _, height, width = pixels.shape
        times = frames // config.temporal_patch_size
        rows, columns = height // CELL, width // CELL
        patches = patchify(pixels, config.temporal_patch_size, config.patch_size, config.spatial_merge_size)
        grid = torch.tensor([[1, rows * 2, columns * 2]])
        order, ends = get_vision_window_index(grid, config.spatial_merge_size, config.window_size, config.patch_size)
        order = order.to(pixels.device)
        unit = tower.spatial_merge_unit
        hidden = tower.patch_embed(patches.flatten(0, 1)).view(batch * times, rows * columns, unit, -1)
        hidden = hidden[:, order].flatten(1, 2)
        places = get_vision_position_ids(grid, config.spatial_merge_size).view(rows * columns, unit, 2)
        angles = tower.rotary_pos_emb(hidden, places.to(pixels.device)[order].flatten(0, 1))
        windows = (ends[1:] - ends[:-1]).tolist()
        for i, block in enumerate(tower.blocks):
            lengths = [hidden.shape[1]] if i in config.fullatt_block_indexes else windows
            hidden = hidden + _attend(block.attn, block.norm1(hidden), angles, lengths)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = tower.merger(hidden.flatten(0, 1)).view(batch * times, rows * columns, -1)
        return merged[:, torch.argsort(order)].view(batch, times * rows * columns, -1), None

    def frame(self, frames: int, grid: tuple[int, int]) -> tuple[list[int], list[int], Tensor]:
        words, count = self.tokenizer, frames * grid[0] * grid[1]
        before, after = [words.bos_token_id, words.start_token_id], [words.end_token_id]
        kinds = torch.tensor([[0, 0, *[2 if frames > 1 else 1] * count, 0, 0]])
        shape = torch.tensor([[frames, 2 * grid[0], 2 * grid[1]]])
        grids = {"video_grid_thw" if frames > 1 else "image_grid_thw": shape}
        places, _ = self.model.model.get_rope_index(torch.zeros_like(kinds), kinds, **grids)
        return before, after, places[:, 0]


def _attend(attention: Any, hidden: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
    """Attention of (B, S, d) within runs of the given lengths."""
    queries, keys, values = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    queries, keys = apply_rotary_pos_emb_vision(queries, keys, *angles)
    runs = zip(*(part.transpose(1, 2).split(lengths, dim=2) for part in (queries, keys, values)), strict=True)
    mixed = torch.cat([scaled_dot_product_attention(*run) for run in runs], dim=2)
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def patchify(pixels: Tensor, temporal: int, patch: int, merge: int) -> Tensor:
    """Patches (B, P, values) of clips (B, frames, C, height, width), as Qwen-VL's image processors lay them out."""
    batch, frames, channels, height, width = pixels.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    shape = (batch, frames // temporal, temporal, channels, rows, merge, patch, columns, merge, patch)
    order = (0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return pixels.reshape(shape).permute(order).flatten(6).flatten(1, 5)


def student(name: str, model: Any, tokenizer: Any) -> Student:
    """The student of a model's name."""
    return (LlavaStudent if name == "llava" else QwenStudent)(model, tokenizer)
