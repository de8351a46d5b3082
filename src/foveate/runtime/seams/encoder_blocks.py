"""The blocks of a vision encoder on a part of the patches: what seams that choose before them, or between them, share.

The encoder's own code runs. Where all images are one sequence, hooks on its blocks shorten what enters the first one
without them, and what each is told of positions and of where images end; hooks behind the blocks put zeros in the place
of what left. Where each image is a row of a batch, a block's own forward is called on the rest of each row, and what
left stays in its place as it last was. Either way the model finds as many tokens as it expects, and before the language
model they are dropped.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ...grouping import Choice, ReadCue, Span, TokenGroups, choose
from ...methods import Stage
from ...models import ModelAdapter
from ...models.encoder_cues import images_by_count, of_all_tokens
from ...tokens import Cue, Grid
from ..hooks import Attached, Hooks
from ..state import CallStack, EncoderPass
from .base import Seam


class EncoderBlocks(Seam):
    """Lets the blocks of an encoder go on without the tokens that were left out by whoever called `leave_out`."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter

    def grids(self, encoding: EncoderPass) -> list[Grid]:
        """Of the images of a pass; read once, because a GPU waits for it."""
        if (self, Grid) not in encoding.slots:
            encoding.slots[self, Grid] = self._adapter.encoder_grids(encoding.args, encoding.kwargs)
        return encoding.slots[self, Grid]  # type: ignore[no-any-return]

    def leave_out(self, encoding: EncoderPass, block: int, keep: Sequence[Tensor]) -> None:
        """From a block on, -1 being before all of them, go on with the tokens `keep` (n,) of each image."""
        pairs = zip(keep, self.grids(encoding), strict=True)
        tokens = torch.cat([mask[self._adapter.encoder_order(grid).to(mask.device)] for mask, grid in pairs])
        if not bool(tokens.all()):
            encoding.kept[block], encoding.trace.kept[block] = list(keep), tokens

    def entering(self, encoding: EncoderPass, block: int) -> Tensor | None:
        """Which tokens (T,) are in what enters a block, before it is shortened; None: all."""
        return encoding.trace.kept_at(block - 1) if block else None

    @abstractmethod
    def split(self, encoding: EncoderPass, block: int, hidden: Tensor) -> list[Tensor]:
        """The patches of each token (n, p, d) of each image in raster order, in what enters a block; 0 where absent."""

    @abstractmethod
    def join(self, encoding: EncoderPass, block: int, hidden: Tensor, patches: Sequence[Tensor]) -> Tensor:
        """What enters a block with the `patches` (n, p, d) of each image in the place of its own."""


def ask(
    stage: Stage,
    grids: Sequence[Grid],
    features: Sequence[Tensor],
    alive: Sequence[Tensor] | None,
    cues: dict[Cue, ReadCue],
) -> Choice | None:
    """What a stage chooses among the tokens of a pass's images; None where nothing is to go.

    Args:
        stage: in or before the encoder.
        grids: of the images.
        features: (n, d) of each.
        alive: (n,) bool of each, which tokens are there; None: all.
        cues: that it needs, by image.
    """
    device = features[0].device
    places = [torch.arange(len(grid), device=device) for grid in grids]
    spans = [Span(i, "", i, grid, place) for i, (grid, place) in enumerate(zip(grids, places, strict=True))]
    groups = TokenGroups.of(spans, stage.budget)
    if not groups.drops:
        return None
    hidden, place = pad_sequence(list(features), batch_first=True), None
    if alive is not None:
        there = pad_sequence([mask.to(device) for mask in alive], batch_first=True)
        place = torch.arange(hidden.shape[1], device=device).expand_as(there).masked_fill(~there, -1)
    return choose(stage.method, groups, hidden, place, cues)


class PackedBlocks(EncoderBlocks):
    """Blocks that see the patches of all images as one sequence (P, d), those of a token side by side."""

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for index, block in enumerate(self._adapter.vision_layers()):
            hooks.before(block, functools.partial(self._enter_block, stack, index))
        for module in self._adapter.token_outputs():
            behind = self._adapter.block_before(module)
            hooks.after(module, functools.partial(self._leave_blocks, stack, behind))

    def split(self, encoding: EncoderPass, block: int, hidden: Tensor) -> list[Tensor]:
        grids, kept = self.grids(encoding), self.entering(encoding, block)
        patches = hidden.unflatten(0, (-1, self._patches(grids)))
        if kept is None:
            kept = torch.ones(len(patches), dtype=torch.bool, device=hidden.device)
        return of_all_tokens(self._adapter, patches, kept, grids)

    def join(self, encoding: EncoderPass, block: int, hidden: Tensor, patches: Sequence[Tensor]) -> Tensor:
        pairs = zip(patches, self.grids(encoding), strict=True)
        ordered = torch.cat([own[self._adapter.encoder_order(grid).to(own.device)] for own, grid in pairs])
        kept = self.entering(encoding, block)
        return (ordered if kept is None else ordered[kept.to(ordered.device)]).flatten(0, 1)

    def _patches(self, grids: Sequence[Grid]) -> int:
        """Of a token."""
        return self._adapter.patches(grids[0]) // len(grids[0])

    def _enter_block(self, stack: CallStack, index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        encoding = stack.encoding
        tokens = None if encoding is None else encoding.trace.kept_at(index)
        if encoding is None or tokens is None:
            return None
        kwargs, each = dict(kwargs), self._patches(self.grids(encoding))
        before, patches = self.entering(encoding, index), tokens.repeat_interleave(each)
        if before is not tokens:
            entering = patches if before is None else patches[before.repeat_interleave(each)]
            if args:
                args = (_kept_of(args[0], entering), *args[1:])
            else:
                kwargs["hidden_states"] = _kept_of(kwargs["hidden_states"], entering)
        made: dict[Any, Any] = encoding.slots.setdefault(self, {})
        if (rotary := kwargs.get("position_embeddings")) is not None:
            kwargs["position_embeddings"] = _compute_once(
                made, tokens, rotary, lambda: tuple(_kept_of(part, patches) for part in rotary)
            )
        if (ends := kwargs.get("cu_seqlens")) is not None:
            kwargs["cu_seqlens"] = _compute_once(made, tokens, ends, lambda: _shorten_ends(ends, patches))
        return args, kwargs

    def _leave_blocks(
        self, stack: CallStack, behind: int, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> Tensor:
        tokens = None if stack.encoding is None else stack.encoding.trace.kept_at(behind)
        if tokens is None:
            return output
        whole = output.new_zeros(len(tokens), *output.shape[1:])
        return whole.index_put((tokens.nonzero()[:, 0].to(output.device),), output)


class RowBlocks(EncoderBlocks):
    """Blocks that see each image as a row of (B, n, d): images that keep as many share a call."""

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for index, block in enumerate(self._adapter.vision_layers()):
            hooks.replace(block, "forward", _RowForward(self, stack, index, block.forward))

    def split(self, encoding: EncoderPass, block: int, hidden: Tensor) -> list[Tensor]:
        grids, kept = self.grids(encoding), self.entering(encoding, block)
        patches = [
            row[self._adapter.token_patches(grid).to(row.device)] for row, grid in zip(hidden, grids, strict=True)
        ]
        if kept is None:
            return patches
        gone = (~kept).to(hidden.device).view(len(grids), -1)
        return [own.masked_fill(mask[:, None, None], 0) for own, mask in zip(patches, gone, strict=True)]

    def join(self, encoding: EncoderPass, block: int, hidden: Tensor, patches: Sequence[Tensor]) -> Tensor:
        pairs = zip(hidden, patches, self.grids(encoding), strict=True)
        rows = [row.index_put((self._adapter.token_patches(grid).to(row.device),), own) for row, own, grid in pairs]
        return torch.stack(rows)

    def run(self, encoding: EncoderPass, kept: Tensor, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a block makes of the tokens `kept` (T,) of each row; all else stays as it was."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        whole, made = hidden, encoding.slots.setdefault(self, {})
        for images, positions in _compute_once(
            made, kept, hidden.shape[1], lambda: self._groups(encoding, kept, hidden)
        ):
            at, given = (images[:, None], positions), dict(kwargs)
            masks = [_mask_of(mask, images, positions, hidden) for mask in args[1:2]]
            if "attention_mask" in kwargs:
                given["attention_mask"] = _mask_of(kwargs["attention_mask"], images, positions, hidden)
            if args:
                out = call(hidden[at], *masks, *args[2:], **given)
            else:
                out = call(**{**given, "hidden_states": hidden[at]})
            whole = whole.index_put(at, out[0] if isinstance(out, tuple) else out)
        return whole

    def _groups(self, encoding: EncoderPass, kept: Tensor, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Images (b,) that keep as many tokens, and the positions (b, s) of what is left in their rows.

        Those of no token, such as CLS, come first, then the patches as if the tokens were a picture of one line, which
        is how adapters read the attention of it.
        """
        patches = self._adapter.token_patches(self.grids(encoding)[0])
        side = self._adapter.merge
        always = torch.ones(hidden.shape[1], dtype=torch.bool)
        always[patches.flatten()] = False
        first, rows, found = always.nonzero()[:, 0], kept.cpu().view(len(hidden), -1), []
        for _, images in images_by_count(rows):
            lines = [patches[rows[image]].unflatten(1, (side, side)).transpose(0, 1).flatten() for image in images]
            positions = torch.stack([torch.cat([first, line]) for line in lines])
            found.append((torch.tensor(images, device=hidden.device), positions.to(hidden.device)))
        return found


class _RowForward(Attached):
    """Stands in for the forward of a block whose rows may have become shorter."""

    def __init__(self, blocks: RowBlocks, stack: CallStack, index: int, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._blocks, self._stack, self._index, self._function = blocks, stack, index, function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        encoding = self._stack.encoding
        kept = None if encoding is None else encoding.trace.kept_at(self._index)
        if encoding is None or kept is None:
            return self._function(*args, **kwargs)
        return self._blocks.run(encoding, kept, self._function, args, kwargs)


def _mask_of(mask: Any, images: Tensor, positions: Tensor, hidden: Tensor) -> Any:
    """A block's attention mask, (B, n) or (B, H, n, n), of what is left of some rows of `hidden` (B, n, d)."""
    if not isinstance(mask, Tensor):
        return mask
    batch, length = hidden.shape[:2]
    if mask.ndim == 2:
        return mask.expand(batch, length)[images[:, None], positions]
    own = mask.expand(batch, -1, length, length)[images]
    rows = torch.arange(len(images), device=own.device)[:, None, None]
    return own[rows, :, positions[:, :, None], positions[:, None]].permute(0, 3, 1, 2)


def _compute_once(made: dict[Any, Any], tokens: Tensor, argument: Any, make: Callable[[], Any]) -> Any:
    """What `make` makes for `tokens` of an argument that several blocks are handed, made once."""
    key = id(tokens), argument if isinstance(argument, int) else id(argument)
    if key not in made:
        made[key] = tokens, argument, make()  # they are kept alive, so that their ids stay unique
    return made[key][-1]


def _kept_of(values: Tensor, patches: Tensor) -> Tensor:
    """Those of `values` (P, ...) whose patches (P,) bool stay."""
    return values[patches.to(values.device)]


def _shorten_ends(ends: Tensor, patches: Tensor) -> Tensor:
    """Where each image, frame or window ends among the `patches` (P,) bool that stay; empty ones are gone."""
    counted = pad(patches.cumsum(0), (1, 0)).to(ends.device)
    return counted[ends.long()].unique_consecutive().to(ends.dtype)


def blocks_of(adapter: ModelAdapter) -> EncoderBlocks:
    """How the blocks of a model's encoder go on without some of the patches."""
    return PackedBlocks(adapter) if adapter.encoder_layout == "packed" else RowBlocks(adapter)
