"""What is made of an encoder written as vLLM's: as if blocks had never been given what left; nobody waits for a GPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated_device import OnDevice, emulated_device, on_device, on_host
from foveate import Budget, InEncoder, ModelError
from foveate.methods import ModelFacts
from foveate.models.qwen2_5_vl import Qwen25VLAdapter
from foveate.serving.vllm.family import QwenFamily
from foveate.serving.vllm.faults import Faults
from foveate.serving.vllm.inside_encoder import EncoderPass, InsideEncoder
from foveate.serving.vllm.memory import ChoiceMemory
from foveate.serving.vllm.request import PruneRequest
from foveate.tokens import Cue, Grid

WIDTH, MERGED = 8, 4
GRIDS = [Grid(3, 5), Grid(4, 4, 2), Grid(2, 2)]  # with windows of two tokens by two
Arguments = dict[str, Tensor]


class Block(nn.Module):
    """Within each sequence, every patch is moved by the mean of the others, turned by its own place."""

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        rotary_pos_emb_cos: Tensor,
        rotary_pos_emb_sin: Tensor,
        max_seqlen: int | None = None,
    ) -> Tensor:
        of = (torch.arange(len(x), device=x.device)[:, None] >= cu_seqlens[None, 1:]).sum(1)
        same = (of[:, None] == of[None]).float()
        turned = x[:, 0] * rotary_pos_emb_cos + x[:, 0].flip(1) * rotary_pos_emb_sin
        return x + (same @ turned / same.sum(1, keepdim=True)).sin()[:, None]


class Merger(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, MERGED * WIDTH).cos()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.merger = nn.ModuleList(Block() for _ in range(4)), Merger()

    def forward(self, x: Tensor, given: Sequence[Arguments]) -> Tensor:
        for block, arguments in zip(self.blocks, given, strict=True):
            x = block(x, **arguments)
        return self.merger(x)  # type: ignore[no-any-return]


class Family(QwenFamily):
    adapter_class = Qwen25VLAdapter


class NoCues:
    """In the place of what observes vLLM's encoder."""

    @contextlib.contextmanager
    def observing(self, needs: frozenset[Cue], items: Any, passing: EncoderPass) -> Iterator[None]:
        yield

    def read(self, items: Any) -> dict[Cue, list[Tensor]]:
        return {}


def made(*stages: InEncoder) -> tuple[Encoder, Family, InsideEncoder, Faults]:
    encoder, faults = Encoder(), Faults()
    vision = SimpleNamespace(spatial_merge_size=2, patch_size=14, window_size=56, fullatt_block_indexes=[1, 3])
    family = Family(SimpleNamespace(vision_config=vision, hidden_size=WIDTH), SimpleNamespace(visual=encoder))
    facts = ModelFacts("tiny", 16, 2, vision_width=WIDTH, blocks=4)
    bound: Any = [stage.bind(facts) for stage in stages]
    cues: Any = [NoCues() for _ in stages]
    return encoder, family, InsideEncoder(family, bound, cues, ChoiceMemory(), faults), faults


def inputs(family: Family) -> tuple[Tensor, list[Arguments]]:
    """Patches (P, 1, d) in the encoder's order, and what each block is handed."""
    torch.manual_seed(0)
    count = sum(map(len, GRIDS)) * MERGED
    rotary = dict(zip(("rotary_pos_emb_cos", "rotary_pos_emb_sin"), torch.randn(2, count, WIDTH), strict=True))
    frames = [len(grid.frame) * MERGED for grid in GRIDS for _ in range(grid.frames)]
    windows = []
    for grid in GRIDS:
        frame, row, column = grid.coordinates().unbind(-1)
        window = (frame * 8 + row // 2) * 8 + column // 2
        windows += (window.unique(return_counts=True)[1] * MERGED).tolist()
    full, local = (
        torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32) for sizes in (frames, windows)
    )
    given = [{**rotary, "cu_seqlens": full if block in (1, 3) else local} for block in range(4)]
    return torch.randn(count, 1, WIDTH), given


REQUESTS = [
    PruneRequest("divprune", Budget(0.2), encoder=(0.5, 0.3)),
    PruneRequest("divprune", Budget(0.2, "frame"), encoder=(0.6, 0.4)),
    PruneRequest("divprune", Budget(0.2), encoder=(1.0, 0.5)),
]


def test_blocks_and_mergers_never_see_what_left() -> None:
    encoder, family, inside, faults = made(InEncoder("divprune", 1), InEncoder("random", 2))
    x, given = inputs(family)
    before = [dict(vars(module)) for module in encoder.modules()]
    with inside.pruning(GRIDS, REQUESTS, [None] * 3) as passing:
        found = encoder(x, given)
    assert [dict(vars(module)) for module in encoder.modules()] == before and faults.failed == 0
    assert passing.alive is not None and sorted(passing.kept) == [1, 2]
    for stage, tokens in ((1, [8, 20, 4]), (2, [5, 12, 2])):  # of images of 15, 32 and 4
        sizes = [int(part.sum()) for part in passing.kept[stage].tokens.split([len(grid) for grid in GRIDS])]
        assert sizes[0] == tokens[0] and sizes[2] == tokens[2]
        frames = passing.kept[stage].tokens[15:47].view(2, 16).sum(1).tolist()
        assert frames == [Budget((0.6, 0.4)[stage - 1]).count(16)] * 2
    # By hand: what enters each block is cut here.
    hidden, mask = x, torch.ones(len(x) // MERGED, dtype=torch.bool)
    for index, (block, arguments) in enumerate(zip(encoder.blocks, given, strict=True)):
        if index in passing.kept:
            now = passing.kept[index].tokens
            assert not (now & ~mask).any()  # what has left stays away
            hidden, mask = hidden[now[mask].repeat_interleave(MERGED)], now
        patches = mask.repeat_interleave(MERGED)
        ends = arguments["cu_seqlens"].tolist()
        sizes = [int(patches[a:b].sum()) for a, b in itertools.pairwise(ends)]
        cut = torch.tensor([0, *(size for size in sizes if size)]).cumsum(0)
        rotary = {name: arguments[name][patches] for name in ("rotary_pos_emb_cos", "rotary_pos_emb_sin")}
        hidden = block(hidden, cu_seqlens=cut, **rotary)
    assert torch.allclose(found[mask], encoder.merger(hidden), atol=1e-6)
    assert not found[~mask].any() and len(found) == len(mask)
    for grid, own, tokens in zip(GRIDS, passing.alive, mask.split([len(grid) for grid in GRIDS]), strict=True):
        assert torch.equal(own[family.adapter.encoder_order(grid)], tokens)


def test_nobody_waits_for_a_gpu() -> None:
    encoder, family, inside, faults = made(InEncoder("divprune", 0), InEncoder("divprune", 2))
    x, given = inputs(family)
    with inside.pruning(GRIDS, REQUESTS, [b"one", b"two", b"three"]) as passing:
        expected = encoder(x, given)
    encoder, _, again, _ = made(InEncoder("divprune", 0), InEncoder("divprune", 2))
    with emulated_device(), again.pruning(GRIDS, REQUESTS, [b"one", b"two", b"three"]) as there:
        found = encoder(on_device(x), on_device(given))
    assert isinstance(found, OnDevice) and faults.failed == 0
    assert torch.allclose(on_host(found), expected, atol=1e-6)
    for one, other in zip(there.alive or [], passing.alive or [], strict=True):
        assert torch.equal(on_host(one), other)


def test_an_image_that_is_encoded_again_loses_the_same_tokens() -> None:
    encoder, family, inside, _ = made(InEncoder("divprune", 1), InEncoder("divprune", 2))
    x, given = inputs(family)
    with inside.pruning(GRIDS, REQUESTS, [b"one", None, b"three"]) as first:
        encoder(x, given)
    memory = inside._memory
    assert all(memory.knows(key) for key in (b"one\0", b"one\1", b"three\1")) and not memory.knows(b"three\0")
    with inside.pruning(GRIDS, REQUESTS, [b"one", None, b"other"]) as second:
        encoder(torch.randn_like(x), given)  # as if rounded otherwise, only more so
    assert first.alive is not None and second.alive is not None
    assert torch.equal(first.alive[0], second.alive[0]) and not torch.equal(first.alive[1], second.alive[1])
    # What was chosen among others than are there now is forgotten, behind the encoder, too.
    memory._choices.put(b"one", memory._choices.get(b"one\1"))  # type: ignore[arg-type]
    memory.forget(b"one\0")
    with inside.pruning(GRIDS, REQUESTS, [b"one", None, None]):
        encoder(x, given)
    assert not memory.knows(b"one") and memory.knows(b"one\0") and memory.knows(b"one\1")


def test_encoders_that_cannot_be_cut_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "attn_backend", SimpleNamespace(name="FLASHINFER"), raising=False)
    with pytest.raises(ModelError, match="--mm-encoder-attn-backend"):
        made(InEncoder("divprune", 1))
    monkeypatch.setattr(Encoder, "attn_backend", SimpleNamespace(name="FLASH_ATTN"))
    monkeypatch.setattr(Block, "forward", lambda self, x, lengths: x)
    with pytest.raises(ModelError, match="take no cu_seqlens, rotary_pos_emb_cos, rotary_pos_emb_sin"):
        made(InEncoder("divprune", 1))
