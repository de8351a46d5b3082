"""What rotary tables tell of distance, and M-RoPE's three tables as one."""

from __future__ import annotations

import torch
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from foveate.importance.rotary import join_sections, rotary_decay

SECTIONS = (2, 3, 3)


def tables(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of positions (..., L): cosines and sines (..., L, 2 * frequencies)."""
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def test_each_frequency_turns_by_its_own_axis() -> None:
    frequencies = torch.logspace(0, -2, sum(SECTIONS))
    positions = torch.randint(0, 50, (3, 2, 5))
    axis = torch.tensor([0] * 2 + [1] * 3 + [2] * 3)
    angles = positions[axis].permute(1, 2, 0) * frequencies  # (B, L, frequencies)
    cos, sin = join_sections(tables(positions, frequencies), SECTIONS)
    assert torch.allclose(cos, torch.cat([angles, angles], -1).cos())
    assert torch.allclose(sin, torch.cat([angles, angles], -1).sin())
    once = tables(positions[0], frequencies)
    assert join_sections(once, SECTIONS) is once


def test_tables_of_transformers_are_joined_whichever_release_made_them() -> None:
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": list(SECTIONS)}
    sizes = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8}
    config = Qwen2VLConfig(text_config={**sizes, "num_hidden_layers": 1, "vocab_size": 8, "rope_parameters": rope})
    positions = torch.randint(0, 50, (3, 1, 6))
    made = Qwen2VLRotaryEmbedding(config.get_text_config())(torch.zeros(1), positions)
    frequencies = 100.0 ** -(torch.arange(8) / 8)
    expected = join_sections(tables(positions, frequencies), SECTIONS)
    for table, wanted in zip(join_sections(made, SECTIONS), expected, strict=True):
        assert torch.allclose(table, wanted, atol=1e-5)


def test_the_decay_is_the_mean_cosine_of_the_angles_between() -> None:
    frequencies = torch.tensor([1.0, 0.1])
    table, other = tables(torch.tensor([[0, 3]]), frequencies), tables(torch.tensor([[1]]), frequencies)
    expected = torch.stack([frequencies.cos().mean(), (2 * frequencies).cos().mean()])
    assert torch.allclose(rotary_decay(table, other), expected[None, :, None])
    doubled = (2 * table[0], 2 * table[1])
    assert torch.allclose(rotary_decay(doubled, doubled), rotary_decay(table, table))
