"""What the places of an image in the prompt stand for: tokens of its grids, and what always stays between them.

Two kinds always stay. Some rows of the encoder's output stand for no token of a grid, such as the newline that ends
each line of LLaVA-NeXT. And some families have text between the tokens of a grid, such as the break that ends each row
of Pixtral. How many tokens of a row are kept is not known when vLLM fixes the prompt, and so not where such text will
lie; in a pruned image its embeddings therefore travel among the image's, and all its places are placeholders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...devices import from_host
from ...errors import ModelError

TOKEN = -1  # a token of a grid
ROW = -2  # another row of the encoder's output; whatever is not negative is the id of a token of text


def layout_of(run: Tensor) -> Tensor:
    """The layout (p,) long of a run of placeholders (p,) bool, as `ModelAdapter.placeholders` gives it."""
    return torch.where(run, TOKEN, ROW)


def shorten_prompt(prompt: Sequence[int], embeds: Sequence[bool], layout: Tensor, kept: Sequence[bool]) -> list[int]:
    """The part of a prompt that stands for an image, without the tokens that are not kept.

    Args:
        prompt: ids.
        embeds: which of them are placeholders.
        layout: (p,) of the image.
        kept: which of the tokens of its grids stay, as far as their number goes.

    Raises:
        ModelError: where the prompt is not laid out so.
    """
    placeholder = next((token for token, embed in zip(prompt, embeds, strict=True) if embed), -1)
    places, keeps = layout.tolist(), iter(kept)
    out, at = list[int](), 0
    for token, embed in zip(prompt, embeds, strict=True):
        due = places[at] if at < len(places) else None
        if embed:
            if due is None or due >= 0:
                at = -1
                break
            if due == ROW or next(keeps):
                out.append(token)
        else:
            out.append(placeholder if token == due else token)
        at += embed or token == due
    if at != len(places):
        raise explain_variant(sum(embeds), len(kept))
    return out


def explain_variant(reserved: int, tokens: int) -> ModelError:
    """Why an image whose grids hold so many tokens cannot be pruned where vLLM reserves so many for it."""
    return ModelError(
        f"vLLM reserves {reserved} tokens for an image or clip whose grids hold {tokens}; this variant of the model "
        "cannot be pruned: add foveate_keep=1.0 to the request."
    )


class Weaver:
    """Takes the tokens of one image's grids from the rows of the encoder, and puts what always stays between them.

    Args:
        layout: (p,) of the image.
        device: of the encoder's output.
    """

    def __init__(self, layout: Tensor, device: torch.device) -> None:
        rows = layout[layout < 0]
        stays = (layout != TOKEN).nonzero()[:, 0]
        self.text = _to(device, layout[layout >= 0])
        self._plain = not len(stays)
        if self._plain:
            return
        self._tokens = _to(device, (rows == TOKEN).nonzero()[:, 0])
        self._token_places = _to(device, (layout == TOKEN).nonzero()[:, 0])
        self._rows = _to(device, (rows == ROW).nonzero()[:, 0])
        self._row_places = _to(device, (layout == ROW).nonzero()[:, 0])
        self._text_places = _to(device, (layout >= 0).nonzero()[:, 0])

    def tokens(self, given: Tensor) -> Tensor:
        """The rows (n, d') of the tokens of grids, among all rows (r, d') of the encoder."""
        return given if self._plain else given[self._tokens]

    def weave(self, given: Tensor, kept: Tensor, index: Tensor, text: Tensor | None) -> Tensor:
        """What is kept and what always stays, in order: (k + s, d').

        Args:
            given: (r, d') the rows of the encoder.
            kept: (k, d') what is kept of the tokens.
            index: (k,) where those were among the tokens.
            text: (t, d') the embeddings of `text`; None where there is none.
        """
        if self._plain:
            return kept
        parts = [kept, given[self._rows]]
        places = [self._token_places[index], self._row_places]
        if text is not None:
            parts, places = [*parts, text.to(kept.dtype)], [*places, self._text_places]
        return torch.cat(parts)[torch.argsort(torch.cat(places))]


def _to(device: torch.device, index: Tensor) -> Tensor:
    return from_host(index.tolist(), device)
