"""Between vLLM's encoder and its encoder cache: the images of a step are encoded together, then each is shortened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...tokens import Cue
from .batch import Chosen, Pool, choose, pools_of
from .config import PruningServer
from .encoder_cues import EncoderListener
from .family import PIXELS, take
from .processor import field
from .request import PruneRequest


class ImagePruner:
    """Wraps ``embed_multimodal`` of one model.

    Args:
        server: of the model.
        width: columns of an embedding that the language model reads; DeepStack rows stand behind them.
        most: unpruned tokens that may be encoded at once. vLLM admits images to a step by what is kept of them, but
            the encoder's memory was measured for this many.
    """

    def __init__(self, server: PruningServer, width: int, most: int) -> None:
        self._server, self.family, self._width, self._most = server, server.known_family, width, most
        self._listener = EncoderListener(self.family)

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
        present = [modality for modality, name in PIXELS.items() if name in batch]
        if not marks or len(present) != 1:
            return [(rows, None) for rows in encode(**batch)]
        modality = present[0]
        requests = [PruneRequest.from_tensor(mark) for mark in marks[modality]]
        items = self.family.items(modality, batch)
        rows = self.family.rows(modality, batch)
        seconds = self.family.seconds(modality, batch, len(items))
        out: list[tuple[Tensor, Tensor | None]] = []
        for first, last in _portions([sum(map(len, grids)) for grids in items], self._most):
            portion = batch if last - first == len(items) else take(batch, rows, first, last)
            out += self._portion(encode, portion, requests[first:last], items[first:last], seconds[first:last])
        return out

    def _portion(self, encode: Any, batch: Any, requests: Any, items: Any, seconds: Any) -> Any:
        methods = [None if request is None else self._server.shelf.get(request.method) for request in requests]
        needs = frozenset(cue for method in methods if method is not None for cue in method.needs)
        with self._listener.listening(needs):
            embeddings = list(encode(**batch))
        cues = self._listener.cues(items)
        pools: list[list[Pool]] = [
            [] if request is None else pools_of(grids, request.budget)
            for request, grids in zip(requests, items, strict=True)
        ]
        chosen = self._choose(methods, embeddings, pools, cues)
        return [
            (rows, None) if one is None else (one.rows, self._distances(one, grids, step))
            for rows, one, grids, step in zip(embeddings, chosen, items, seconds, strict=True)
        ]

    def _choose(
        self,
        methods: Sequence[Method | None],
        embeddings: list[Tensor],
        pools: list[list[Pool]],
        cues: dict[Cue, list[Tensor]],
    ) -> list[Chosen | None]:
        chosen: list[Chosen | None] = [None] * len(embeddings)
        for method in dict.fromkeys(one for one in methods if one is not None):
            mine = [index for index, one in enumerate(methods) if one is method]
            found = choose(
                method,
                [embeddings[index] for index in mine],
                [pools[index] for index in mine],
                {cue: [values[index] for index in mine] for cue, values in cues.items() if cue in method.needs},
                self._width,
            )
            for index, one in zip(mine, found, strict=True):
                chosen[index] = one
        return chosen

    def _distances(self, chosen: Chosen, grids: Any, step: float) -> Tensor | None:
        if not self.family.mrope:
            return None
        (grid,) = grids
        index, size = chosen.index, grid.rows * grid.columns
        # Where each frame is a block of its own, its tokens begin at its own beginning.
        frame = torch.zeros_like(index) if self.family.clip_scopes == ("frame",) else index // size
        inside = index % size
        return torch.stack([(frame.float() * step).long(), inside // grid.columns, inside % grid.columns], 1)


def _portions(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs of images with at most so many tokens together, or one image."""
    bounds, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            bounds.append((start, index))
            start, total = index, 0
        total += size
    return [*bounds, (start, len(sizes))]
