"""What methods that read the prompt's text share: images beside their text, and the sign of relevance.

Checkpoints hold no text tower of CLIP, so these methods compare visual tokens as the language model reads them with
the input embeddings of the prompt's text (in a later turn on the same cache, of that turn's text).

Between CLIP's patches and sentences the patches that matter have the lower cosine, for which reason CDPruner, TRIM and
EADP negate it. Nobody has settled the sign between projected tokens and input embeddings: EADP's own port to Qwen keeps
the minus, OpenVINO's port of CDPruner drops it. Here it is a field, and the plus by default; docs/provenance.md tells
what either does to a small LLaVA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ...devices import places_of_each
from ...tokens import Cue, VisualTokens

Sign = Literal["plus", "minus"]
SIGNS = {"plus": 1.0, "minus": -1.0}


def by_image(tokens: VisualTokens) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each pool the places of its tokens (n,), those tokens (n, d) and its text (m, d), in float32.

    Without padding, so that a pool's choice cannot depend on its neighbours, not even by rounding.
    """
    for row, places in enumerate(places_of_each(tokens.valid)):
        yield places, tokens.features[row, places].float(), tokens.text(row).float()


def relevance_of(tokens: VisualTokens, sign: Sign, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B, N) float32: what `measure` makes of each pool's tokens (n, d) and text (m, d), signed; zero on padding."""
    out = torch.zeros(tokens.features.shape[:2], dtype=torch.float32, device=tokens.features.device)
    for row, (places, visual, text) in enumerate(by_image(tokens)):
        out[row, places] = SIGNS[sign] * measure(visual, text)
    return out


def mean_over_heads(attention: Tensor, valid: Tensor) -> Tensor:
    """(B, N, M) float32: attention (B, N, H, M) as the mean over heads; 0 where a token is not valid (B, N)."""
    return torch.where(valid[..., None], attention.float().mean(2), 0.0)


def mean_of_rows(attention: Tensor, rows: Tensor) -> Tensor:
    """(B, N) float32: the mean of those rows (B, M) of the attention (B, N, M) that count; 0 where none does."""
    return torch.where(rows[:, None], attention, 0.0).sum(-1) / rows.sum(1, keepdim=True).clamp_min(1)


def attention_of_text(tokens: VisualTokens) -> Tensor:
    """(B, N) float32: the attention that the text behind an image pays to each token in the LLM layer below.

    The mean over heads and text; zero on padding, and everywhere where no text follows.
    """
    attention, follows = tokens.cue(Cue.LLM_TEXT_ATTENTION), tokens.text_follows
    out = torch.zeros(attention.shape[:2], dtype=torch.float32, device=attention.device)
    for row, size in enumerate(tokens.sizes):
        if follows[row].any():
            out[row, :size] = attention[row, :size][..., follows[row]].float().mean((1, 2))
    return out


def mean_of(text: Tensor) -> Tensor:
    """(d,): the mean of (m, d); zero without text, which makes all tokens equally relevant."""
    return text.sum(0) / max(len(text), 1)
