"""Inside vLLM's vision encoder: at a block tokens leave with their patches, and vLLM's own code goes on with the rest.

For the time of one pass, the forward of each block and of each merger is wrapped: a block is handed less, and what a
merger gives gets zeros in the place of the tokens that left, so that vLLM finds as many as it expects. Hooks would not
do, as vLLM's decorator for compiled modules replaces what calls them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...catalog import explain_unread_blocks
from ...devices import from_host
from ...errors import MethodError, ModelError
from ...methods.toolkit.in_encoder import InEncoder
from ...models import ModelAdapter
from ...tokens import Cue, Grid
from .batch import MethodCall
from .family import Family
from .faults import Faults
from .memory import ChoiceMemory, apply_flows
from .request import PruneRequest

if TYPE_CHECKING:
    from .encoder_cues import EncoderCues  # which imports vLLM

_HIDDEN = "x"  # what vLLM's blocks call the hidden states of the patches, (P, 1, d)
_ROTARY = ("rotary_pos_emb_cos", "rotary_pos_emb_sin")  # (P, r)
_ENDS = "cu_seqlens"
_OF_BACKEND = ("FLASHINFER",)  # attention whose `cu_seqlens` are no numbers of patches


@dataclass(frozen=True)
class Kept:
    """Tokens that go on from a block.

    Args:
        tokens: (T,) bool, of all images in the order of the encoder.
        places: (K,) long, where they are true, rising.
    """

    tokens: Tensor
    places: Tensor


@dataclass
class EncoderPass:
    """One pass of the encoder over images whose requests prune inside of it.

    Args:
        grids: of the images.
        requests: of the images.
        keys: what stands for each image and its request; None where it is not known.
        each: patches of a token.
        alive: of each image (n,) bool, which of its tokens are there, in raster order; None: all.
        kept: by block from which on tokens were left out.
    """

    grids: Sequence[Grid]
    requests: Sequence[PruneRequest]
    keys: Sequence[bytes | None]
    each: int
    alive: list[Tensor] | None = None
    kept: dict[int, Kept] = field(default_factory=dict)
    made: dict[tuple[int, int], tuple[Any, Tensor]] = field(default_factory=dict)  # what several blocks are handed

    def kept_at(self, block: int) -> Kept | None:
        """What enters a block; None: all."""
        last = max((start for start in self.kept if start <= block), default=None)
        return None if last is None else self.kept[last]

    def alive_of(self, image: int, device: torch.device) -> Tensor:
        """(n,) bool: which tokens of an image are there."""
        if self.alive is not None:
            return self.alive[image]
        return torch.ones(len(self.grids[image]), dtype=torch.bool, device=device)

    def frame_sizes(self, kept: Kept) -> list[int]:
        """Patches of each frame that are left; for frames of clips the host waits for the device."""
        frames = [len(grid.frame) for grid in self.grids for _ in range(grid.frames)]
        ends = from_host(frames, kept.tokens.device).cumsum(0)
        return [
            int(count) * self.each for count in _count_up_to(kept.tokens, ends).diff(prepend=ends.new_zeros(1)).tolist()
        ]


class InsideEncoder:
    """Asks methods about what enters blocks of the encoder, and has the others leave.

    Args:
        family: of the model.
        stages: bound, by rising block.
        cues: for each stage what observes the encoder below its block.
        memory: of what was kept of images.
        faults: where images are counted that no method can choose for.

    Raises:
        ModelError: for an encoder whose code is not as it must be.
        MethodError: for a method that reads attention where there is none yet.
    """

    def __init__(
        self,
        family: Family,
        stages: Sequence[InEncoder],
        cues: Sequence[EncoderCues],
        memory: ChoiceMemory,
        faults: Faults,
    ) -> None:
        self._adapter: ModelAdapter = family.adapter
        self._stages, self._cues, self._memory, self._faults = tuple(stages), tuple(cues), memory, faults
        self._check()

    def _check(self) -> None:
        vision = getattr(self._adapter, "vision", None)
        backend = getattr(getattr(vision, "attn_backend", None), "name", "")
        if backend in _OF_BACKEND:
            raise ModelError(
                f"with the attention backend {backend} vLLM's vision encoder is not told where images end, so that "
                "foveate cannot prune inside of it; choose another by --mm-encoder-attn-backend, such as FLASH_ATTN."
            )
        blocks = getattr(vision, "blocks", None)  # a server for text only has none
        for block in () if blocks is None else blocks:
            missing = {_HIDDEN, _ENDS, *_ROTARY} - inspect.signature(block.forward).parameters.keys()
            if missing:
                raise ModelError(
                    f"the blocks of this vLLM's vision encoder take no {', '.join(sorted(missing))}, so that foveate "
                    "cannot prune inside of it; install a vLLM of the releases that foveate names."
                )
        for stage in self._stages:
            if Cue.ENCODER_ATTENTION in stage.needs and blocks is not None:
                first = min(self._adapter.attention_modules(), default=None)
                if first is None:
                    raise MethodError(
                        f"{stage.name} reads the attention of the vision encoder, but no block of it attends to whole "
                        "images; choose a method that reads features only, such as 'divprune'."
                    )
                if first >= stage.block:
                    raise MethodError(explain_unread_blocks(stage.name, stage.block, first))

    @contextlib.contextmanager
    def pruning(
        self, grids: Sequence[Grid], requests: Sequence[PruneRequest], keys: Sequence[bytes | None]
    ) -> Iterator[EncoderPass]:
        """Within it, the encoder encodes these images, one grid each, and leaves out what their requests say."""
        adapter = self._adapter
        passing = EncoderPass(grids, requests, keys, adapter.patches(grids[0]) // len(grids[0]))
        with contextlib.ExitStack() as stack:
            for cues, stage in zip(self._cues, self._stages, strict=True):
                needs = stage.needs - {Cue.ENCODER_FEATURES}
                stack.enter_context(cues.observing(needs, [[grid] for grid in grids], passing))
            for index, block in enumerate(adapter.vision_layers()):
                stack.enter_context(_wrapped(block, functools.partial(self._run_block, passing, index)))
            for module in adapter.token_outputs():
                behind = adapter.block_before(module)
                stack.enter_context(_wrapped(module, functools.partial(self._run_merger, passing, behind)))
            yield passing

    def _run_block(
        self, passing: EncoderPass, index: int, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        given = inspect.signature(forward).bind(*args, **kwargs).arguments
        for number, stage in enumerate(self._stages):
            if stage.block == index:
                given[_HIDDEN] = self._choose(passing, number, given[_HIDDEN])
        kept = passing.kept_at(index)
        if kept is not None:
            patches = _patches_of(kept.places, passing.each)
            for name in _ROTARY:
                given[name] = _once(passing, kept, given[name], lambda table: table[patches])
            # Images, frames or windows of which nothing is left stay as empty ones: the host need not wait to see which
            # they are. `max_seqlen` stays, too, which is an upper bound.
            given[_ENDS] = _once(passing, kept, given[_ENDS], lambda ends: _shorten_ends(ends, kept, passing.each))
        return forward(**given)

    def _run_merger(
        self, passing: EncoderPass, behind: int, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        output, kept = forward(*args, **kwargs), passing.kept_at(behind)
        if kept is None:
            return output
        return output.new_zeros(len(kept.tokens), *output.shape[1:]).index_copy_(0, kept.places, output)

    def _choose(self, passing: EncoderPass, number: int, hidden: Tensor) -> Tensor:
        """What enters a block, (P', 1, d), of what entered the one below, (P, 1, d)."""
        grids, each, stage = passing.grids, passing.each, self._stages[number]
        groups = [request.encoder_groups([grid], number) for request, grid in zip(passing.requests, grids, strict=True)]
        before = passing.kept_at(stage.block)
        patches = hidden.unflatten(0, (-1, each))[:, :, 0]
        if before is not None:
            patches = patches.new_zeros(len(before.tokens), *patches.shape[1:]).index_copy_(0, before.places, patches)
        orders = [from_host(self._adapter.encoder_order(grid).tolist(), hidden.device) for grid in grids]
        images = [
            part[order.argsort()] for part, order in zip(patches.split(list(map(len, grids))), orders, strict=True)
        ]
        alive = [passing.alive_of(image, hidden.device) for image in range(len(grids))]
        asked = [
            image for image, of_image in enumerate(groups) if of_image.counts != self._left(passing, number, image)
        ]
        if not asked:
            return hidden
        call = MethodCall(
            stage,
            [images[image].mean(1) for image in asked],
            [groups[image] for image in asked],
            self._read(passing, number, images, asked),
            hidden.shape[-1],
            alive=None if passing.alive is None else [alive[image] for image in asked],
        )
        made = self._memory.shorten([self._key(passing.keys[image], number) for image in asked], call, self._faults)
        for image, one in zip(asked, made, strict=True):
            alive[image] = torch.zeros_like(alive[image]).index_fill_(0, one.index, True)
            if one.flows is not None:
                images[image] = apply_flows(one.flows, images[image])
        passing.alive = alive
        tokens = torch.cat([own[order] for own, order in zip(alive, orders, strict=True)])
        count = sum(sum(of_image.counts) for of_image in groups)
        places = torch.argsort(~tokens, stable=True)[:count]
        passing.kept[stage.block] = Kept(tokens, places)
        ordered = torch.cat([own[order] for own, order in zip(images, orders, strict=True)])
        return ordered[places].flatten(0, 1)[:, None]

    def _left(self, passing: EncoderPass, number: int, image: int) -> list[int]:
        """How many tokens of each group of an image a stage finds."""
        request, grids = passing.requests[image], [passing.grids[image]]
        return request.encoder_groups(grids, number - 1).counts if number else request.encoder_groups(grids, 0).sizes

    def _key(self, key: bytes | None, number: int) -> bytes | None:
        """What stands for a stage's choice; where it is made anew, later choices among what it left are forgotten."""
        if key is None:
            return None
        own = key + bytes([number])
        if not self._memory.knows(own):
            for later in (key, *(key + bytes([one]) for one in range(number + 1, len(self._stages)))):
                self._memory.forget(later)
        return own

    def _read(
        self, passing: EncoderPass, number: int, images: Sequence[Tensor], asked: Sequence[int]
    ) -> dict[Cue, list[Tensor]]:
        """The cues of a stage; none where they cannot be read, for which a method that needs them raises."""
        stage = self._stages[number]
        found: dict[Cue, list[Tensor]] = {}
        try:
            found = self._cues[number].read([[grid] for grid in passing.grids])
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            self._faults.count_failed(f"reading the vision encoder for {stage.name}", 0, error)
        if Cue.ENCODER_FEATURES in stage.needs:
            found[Cue.ENCODER_FEATURES] = [image.mean(1) for image in images]
        return {cue: [values[image] for image in asked] for cue, values in found.items()}


@contextlib.contextmanager
def _wrapped(module: nn.Module, run: Callable[..., Tensor]) -> Iterator[None]:
    """Within it, a call of `module` is a call of `run` with the module's forward before the arguments."""
    own = vars(module).get("forward")
    vars(module)["forward"] = functools.partial(run, module.forward)
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


def _once(passing: EncoderPass, kept: Kept, argument: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What `make` makes of an argument that several blocks are handed, made once."""
    key = id(kept), id(argument)
    if key not in passing.made:
        passing.made[key] = argument, make(argument)  # the argument is kept alive, so that its id stays unique
    return passing.made[key][1]


def _patches_of(tokens: Tensor, each: int) -> Tensor:
    return (tokens[:, None] * each + torch.arange(each, device=tokens.device)).flatten()


def _shorten_ends(ends: Tensor, kept: Kept, each: int) -> Tensor:
    """Where images, frames or windows end among the patches that are left, from where they end among all."""
    return (_count_up_to(kept.tokens, ends.to(kept.tokens.device) // each) * each).to(ends.device, ends.dtype)


def _count_up_to(tokens: Tensor, ends: Tensor) -> Tensor:
    """How many of `tokens` (T,) bool lie before each of `ends`."""
    return pad(tokens.cumsum(0), (1, 0))[ends.long()]
