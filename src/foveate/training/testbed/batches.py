"""Batches of scenes of one size, the questions of each scene packed behind its one picture."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...testbed.architectures import DEVIATION, MEAN
from ...testbed.procedural import CELL, Scene, draw_size, generate
from ...testbed.questions import LARGEST, Question, steps
from .labels import Labels, label

NOT_ASKED = -100  # target of a token after which nothing is predicted
_FULL = LARGEST // CELL
_QUESTIONS = 16  # of a full picture
_END_WEIGHT = 0.2  # of the token that ends an answer: easily learned
_LENGTH = 12  # tokens of a question and its answer, about
_NOT_NAMED = (NOT_ASKED,) * 4


@dataclass(frozen=True)
class Packed:
    """The questions of a batch of B scenes, one after the other, padded on the right to T tokens.

    Args:
        ids: (B, T) long.
        offsets: (B, T) long, each token's place in its own question.
        numbers: (B, T) long, which question a token belongs to; -1 on padding.
        targets: (B, T) long, the token that comes next where that is part of an answer, else `NOT_ASKED`.
        weights: (B, T) float, what each target counts: the longer an answer, the less each of its tokens.
        named: (B, T, 4) long, the box in steps of the thing whose name ends at a token, else `NOT_ASKED`.
        questions: the questions themselves.
    """

    ids: Tensor
    offsets: Tensor
    numbers: Tensor
    targets: Tensor
    weights: Tensor
    named: Tensor
    questions: tuple[tuple[Question, ...], ...]

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        tensors = (self.ids, self.offsets, self.numbers, self.targets, self.weights, self.named)
        ids, offsets, numbers, targets, weights, named = (tensor.to(device) for tensor in tensors)
        return Packed(ids, offsets, numbers, targets, weights, named, self.questions)

    def mask(self, prefix: int) -> Tensor:
        """(B, 1, L, L) bool of what each token may attend to, with `prefix` shared tokens in front of the questions."""
        length = prefix + self.ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        mask = mask.repeat(len(self.ids), 1, 1)
        mask[:, prefix:, prefix:] &= self.numbers[:, :, None] == self.numbers[:, None, :]
        return mask[:, None]


@dataclass(frozen=True)
class Batch:
    """Scenes of one size as training wants them.

    Args:
        pixels: (B, frames, 3, height, width) float32, normalised.
        padded: whether the pictures are to be laid onto a full canvas, whose remainder counts as part of the picture.
        labels: of the visual tokens.
        packed: the questions, or None.
    """

    pixels: Tensor
    padded: bool
    labels: Labels
    packed: Packed | None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        packed = self.packed.to(device) if self.packed is not None else None
        return Batch(self.pixels.to(device), self.padded, self.labels.to(device), packed)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens in a frame."""
        return self.pixels.shape[-2] // CELL, self.pixels.shape[-1] // CELL


class Batches:
    """Batch number n of a seed is always the same, so that training can go on where it stopped."""

    def __init__(
        self, split: str, seed: int, tokenizer: Any, tokens: int, clips: bool = False, full_share: float = 0.45
    ) -> None:
        """`tokens`: how many visual and textual ones a batch has, about; `full_share`: of pictures of full size."""
        self.split, self.seed, self.tokenizer, self.tokens = split, seed, tokenizer, tokens
        self.clips, self.full_share = clips, full_share

    def scenes(self, number: int, questions: bool = True, crowded: bool = False) -> list[Scene]:
        """The scenes of a batch, all of one size; small ones are asked less."""
        rng = np.random.default_rng((self.seed, number))
        clip = self.clips and rng.random() < 0.2
        height, width = draw_size(rng, "clip" if clip else "objects", self.full_share)
        visual = height * width // CELL**2 * (3 if clip else 1)
        wanted = max(4, round(_QUESTIONS * min(1.0, visual / _FULL**2))) if questions else 0
        number_of = max(4, self.tokens // (visual + _LENGTH * wanted))
        number_of *= 3 if clip else 1
        scenes: list[Scene] = []
        lessons = self.split == "train"
        for i in range(number_of):
            kind = "clip" if clip else _kind(rng, height, width)
            dense = crowded and kind == "objects" and rng.random() < 0.6
            scenes.append(
                generate(self.split, self.seed, number * 4096 + i, kind, (height, width), wanted, dense, lessons)
            )
        if clip:  # clips of one length: there are three, so that about a third is left
            frames, _ = Counter(len(scene.frames) for scene in scenes).most_common(1)[0]
            scenes = [scene for scene in scenes if len(scene.frames) == frames]
        return scenes

    def batch(self, number: int, questions: bool = True, crowded: bool = False) -> Batch:
        """Batch number `number`."""
        scenes = self.scenes(number, questions, crowded)
        if questions:
            scenes = [scene for scene in scenes if scene.questions]
        padded = not self.clips and bool(np.random.default_rng((self.seed, number, 1)).random() < 0.3)
        return collate(scenes, self.tokenizer if questions else None, padded)

    def stream(self, start: int, questions: bool, crowded: bool, workers: int) -> Iterator[Batch]:
        """Batches from number `start` on, without end, made ahead by worker processes if there are any."""
        if not workers:
            yield from (self.batch(number, questions, crowded) for number in count(start))
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            ahead = deque(pool.submit(self.batch, start + i, questions, crowded) for i in range(2 * workers))
            for number in count(start + 2 * workers):
                yield ahead.popleft().result()
                ahead.append(pool.submit(self.batch, number, questions, crowded))


def _kind(rng: np.random.Generator, height: int, width: int) -> str:
    chance = rng.random()
    if chance < 0.22 and height >= 6 * CELL and width >= 7 * CELL:
        return "chart"
    if chance > 0.82 and height >= 3 * CELL and width >= 6 * CELL:
        return "page"
    return "objects"


def collate(scenes: list[Scene], tokenizer: Any | None, padded: bool = False) -> Batch:
    """Scenes of one size and number of frames as a batch; with their questions if there is a tokenizer."""
    pixels = torch.stack([torch.stack([normalise_pixels(frame) for frame in scene.frames]) for scene in scenes])
    height, width = pixels.shape[-2:]
    if padded:
        pixels = torch.nn.functional.pad(pixels, (0, LARGEST - width, 0, LARGEST - height))
        height = width = LARGEST
    packed = pack([scene.questions for scene in scenes], tokenizer) if tokenizer is not None else None
    return Batch(pixels, padded, label(scenes, height // CELL, width // CELL), packed)


def normalise_pixels(image: Image.Image) -> Tensor:
    """(3, height, width) float32, as the image processors make it."""
    pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def pack(questions: Sequence[Sequence[Question]], tokenizer: Any) -> Packed:
    """The questions of each scene, with their answers, behind each other."""
    flat = [text for asked in questions for one in asked for text in (one.text, one.answer, *one.names)]
    token_ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows = []
    for asked in questions:
        row: list[tuple[float, ...]] = []
        for number, question in enumerate(asked):
            text, answer = next(token_ids), next(token_ids)
            ids = [*text, *answer]
            targets = [NOT_ASKED] * (len(text) - 1) + answer + [tokenizer.eos_token_id]
            weights = [len(answer) ** -0.5] * (len(ids) - 1) + [_END_WEIGHT * len(answer) ** -0.5]
            named: list[tuple[int, ...]] = [_NOT_NAMED] * len(ids)
            for _, box in zip(question.names, question.boxes[0], strict=False):
                named[_end(text, next(token_ids))] = tuple(steps(side) for side in box)
            row += [(ids[i], i, number, targets[i], *named[i], weights[i]) for i in range(len(ids))]
        rows.append(row)
    length = max(len(row) for row in rows)
    filler = (tokenizer.pad_token_id, 0, -1, NOT_ASKED, *_NOT_NAMED, 0.0)
    table = torch.tensor([row + [filler] * (length - len(row)) for row in rows], dtype=torch.float64)
    columns = table[..., :4].long().unbind(-1)
    asked_of = tuple(tuple(asked) for asked in questions)
    return Packed(
        columns[0], columns[1], columns[2], columns[3], table[..., 8].float(), table[..., 4:8].long(), asked_of
    )


def _end(text: Sequence[int], name: Sequence[int]) -> int:
    """Where in a text the last token of a name stands."""
    return next(i for i in range(len(name) - 1, len(text)) if text[i + 1 - len(name) : i + 1] == name)
