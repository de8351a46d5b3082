"""Between vLLM's encoder and its encoder cache: the images of a step are encoded together, then each is shortened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...tokens import Cue
from .batch import Shortened, first_tokens, groups_of
from .config import ServingConfig
from .encoder_cues import EncoderCues
from .family import PIXELS, take
from .faults import Faults
from .layout import Weaver
from .memory import ChoiceMemory
from .positions import distances_in_block
from .processor import field, key_field
from .request import PruneRequest


class ImagePruner:
    """Wraps ``embed_multimodal`` of one model.

    Args:
        server: of the model.
        width: columns of an embedding that the language model reads; DeepStack rows stand behind them.
        most: unpruned tokens that may be encoded at once. vLLM admits images to a step by what is kept of them, but
            the encoder's memory was measured for this many.
    """

    def __init__(self, config: ServingConfig, width: int, most: int) -> None:
        self._config, self.family, self._width, self._most = config, config.known_family, width, most
        self._encoder = EncoderCues(self.family)
        self.faults, self.memory = Faults(), ChoiceMemory()

    def embed(
        self, encode: Callable[..., Sequence[Tensor]], batch: dict[str, Any]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Encode and shorten.

        Args:
            encode: ``embed_multimodal`` of vLLM's class.
            batch: its arguments, and the requests of the images.

        Returns:
            for each image its embeddings (k, d'), and the distances (k, 3) of the kept tokens from the beginning of
            their block in M-RoPE positions; None where everything is kept.
        """
        batch = dict(batch)
        marks = {modality: batch.pop(field(modality)) for modality in PIXELS if field(modality) in batch}
        names = {modality: batch.pop(key_field(modality)) for modality in PIXELS if key_field(modality) in batch}
        present = [modality for modality, name in PIXELS.items() if name in batch]
        if not marks or len(present) != 1:
            return [(rows, None) for rows in encode(**batch)]
        modality = present[0]
        batch = self.family.prepare(modality, batch)
        keys = _keys(marks[modality], names.get(modality))
        requests = [PruneRequest.from_tensor(mark) for mark in marks[modality]]
        items = self.family.items(modality, batch)
        rows = self.family.rows(modality, batch)
        seconds = self.family.seconds(modality, batch, len(items))
        out: list[tuple[Tensor, Tensor | None]] = []
        for first, last in _portions([sum(map(len, grids)) for grids in items], self._most):
            portion = batch if last - first == len(items) else take(batch, rows, first, last)
            inside = slice(first, last)
            out += self._portion(
                encode, modality, portion, requests[inside], items[inside], seconds[inside], keys[inside]
            )
        return out

    def _portion(
        self, encode: Any, modality: str, batch: Any, requests: Any, items: Any, seconds: Any, keys: Any
    ) -> Any:
        """`embed` for images that are encoded together."""
        asked = {index: request for index, request in enumerate(requests) if request is not None}
        methods = {index: self._method(request) for index, request in asked.items()}
        needs = frozenset(cue for method in methods.values() if method is not None for cue in method.needs)
        with self._encoder.observing(needs, items):
            embeddings = list(encode(**batch))
            cues = self._read(items)
        out: list[tuple[Tensor, Tensor | None]] = [(rows, None) for rows in embeddings]
        weavers = {index: self._weaver(modality, items[index], embeddings[index]) for index in asked}
        for method in dict.fromkeys(methods.values()):
            mine = [index for index, other in methods.items() if other is method]
            rows = [weavers[index].tokens(embeddings[index]) for index in mine]
            groups = [groups_of(items[index], asked[index].budget) for index in mine]
            if method is None:
                shortened = [first_tokens(*image) for image in zip(rows, groups, strict=True)]
            else:
                read = {cue: [values[index] for index in mine] for cue, values in cues.items() if cue in method.needs}
                names = [keys[index] for index in mine]
                shortened = self.memory.shorten(names, method, rows, groups, read, self._width, self.faults)
            for index, one in zip(mine, shortened, strict=True):
                woven = weavers[index].weave(embeddings[index], one.rows, one.index, self._text(weavers[index]))
                out[index] = woven, self._distances(one, items[index], seconds[index])
        return out

    def _weaver(self, modality: str, grids: Any, rows: Tensor) -> Weaver:
        return Weaver(torch.cat(self.family.layouts(modality, grids)), rows.device)

    def _text(self, weaver: Weaver) -> Tensor | None:
        return self.family.embed_text(weaver.text) if len(weaver.text) else None

    def _method(self, request: PruneRequest) -> Method | None:
        """The method of a request; None where it cannot be made ready in this process, as it was in the processor's."""
        try:
            return self._config.methods.get(request.method)
        except Exception as error:
            self.faults.count_failed(f"making {request.method} ready", 1, error)
            return None

    def _read(self, items: Any) -> dict[Cue, list[Tensor]]:
        """The cues of a portion; none where they cannot be read, for which the methods that need them raise."""
        try:
            return self._encoder.read(items)
        except Exception as error:
            self.faults.count_failed("reading the vision encoder", 0, error)
            return {}

    def _distances(self, kept: Shortened, grids: Any, step: float) -> Tensor | None:
        if not self.family.mrope:
            return None
        (grid,) = grids
        # Where each frame is a block of its own, its tokens begin at its own beginning.
        return distances_in_block(kept.index, grid, 0.0 if self.family.clip_scopes == ("frame",) else step)


def _portions(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs of images with at most so many tokens together, or one image."""
    bounds, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            bounds.append((start, index))
            start, total = index, 0
        total += size
    return [*bounds, (start, len(sizes))]


def _keys(marks: Sequence[Tensor], names: Sequence[Tensor] | None) -> list[bytes | None]:
    """What stands for each image and its request; None where the image's name did not travel with it."""
    if names is None:
        return [None] * len(marks)
    pairs = zip(marks, names, strict=True)
    return [bytes(name.tolist()) + bytes(mark.tolist()) if bool(name.any()) else None for mark, name in pairs]
