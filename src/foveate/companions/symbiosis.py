"""Semantics and depth learned together: cross-channel attention between two tasks, AffineMix and ColorAug.

A reading of the abstract of "Semantics-Depth-Symbiosis" (Bansal, Ji, Yuan, Xu; WACV 2023, arXiv 2206.10562). The body
of the paper could not be read. What the abstract says: features of semantic segmentation and monocular depth are shared
channel by channel (CCAM) with few parameters, predicted depth drives an augmentation for semantics (AffineMix), and
predicted semantics drive one for depth (ColorAug). Every formula below is a reconstruction. It is about dense
prediction, not about language models, and uses nothing else of foveate.

Pictures are float (3, H, W) in [0, 1], labels int64 (H, W), depths float (H, W) and positive, larger is farther.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FoveateError

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601: what a grey picture keeps of red, green and blue


class SymbiosisError(FoveateError, ValueError):
    """Tensors or settings that the blocks of this module cannot work with.

    Examples:
        >>> ColorAug(movable=(2,), hue=0.7)
        Traceback (most recent call last):
            ...
        foveate.companions.symbiosis.SymbiosisError: hue=0.7 is out of range. Give turns of the hue from 0 to 0.5.
    """


class DepthScene(NamedTuple):
    """A picture (3, H, W), what each pixel is (H, W) int64, and how far it is (H, W).

    Labels and depths may be true or predicted: both augmentations take either.
    """

    picture: Tensor
    labels: Tensor
    depth: Tensor


class CrossChannelAttention(nn.Module):
    """CCAM: each task adds the other's channels to its own, weighed by how much two channels fire together.

    With features F_s and F_d of the two tasks, maps of one channel a = sigmoid(conv1x1(F)) say where each task looks,
    and ::

        alpha_ij = sigmoid(mlp(mean over pixels of (a_s F_s)_i (a_d F_d)_j))
        F_s' = F_s + alpha F_d,   F_d' = F_d + alpha^T F_s

    The perceptron sees one number and is shared by all pairs of channels: 2 (C + 1) + 3 hidden + 1 parameters in all.
    The module belongs before the last stage of each task's decoder.

    Args:
        channels: C, of both tasks.
        hidden: width of the perceptron.
        start: what every alpha is before training, in (0, 1). Sums over C channels are large, so that it is small.

    Examples:
        >>> share = CrossChannelAttention(channels=16)
        >>> semantics, depth = share(torch.rand(2, 16, 8, 8), torch.rand(2, 16, 8, 8))
        >>> semantics.shape, sum(p.numel() for p in share.parameters())
        (torch.Size([2, 16, 8, 8]), 59)
    """

    def __init__(self, channels: int, hidden: int = 8, start: float = 0.05) -> None:
        super().__init__()
        if channels < 1 or hidden < 1:
            raise SymbiosisError(
                f"channels={channels} and hidden={hidden} do not make a module. Give at least 1 of each."
            )
        if not 0 < start < 1:
            raise SymbiosisError(f"start={start} is out of range. Give a number between 0 and 1, such as 0.05.")
        self.channels = channels
        self.look_semantics = nn.Conv2d(channels, 1, 1)
        self.look_depth = nn.Conv2d(channels, 1, 1)
        self.perceptron = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        last = self.perceptron[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(start / (1 - start)))

    def affinity(self, semantics: Tensor, depth: Tensor) -> Tensor:
        """alpha (B, C, C) in (0, 1): rows are channels of semantics, columns those of depth, both (B, C, H, W)."""
        if semantics.shape != depth.shape or semantics.dim() != 4 or semantics.shape[1] != self.channels:
            raise SymbiosisError(
                f"features {tuple(semantics.shape)} and {tuple(depth.shape)} cannot be shared. "
                f"Give two of one shape (B, {self.channels}, H, W)."
            )
        seen = semantics * torch.sigmoid(self.look_semantics(semantics))
        other = depth * torch.sigmoid(self.look_depth(depth))
        together = torch.einsum("bihw,bjhw->bij", seen, other) / (semantics.shape[2] * semantics.shape[3])
        return torch.sigmoid(self.perceptron(together[..., None])[..., 0])

    def forward(self, semantics: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both tasks (B, C, H, W) with the other's added; shapes and dtypes as they were.

        Raises:
            SymbiosisError: if the two are not of one shape, or not of `channels` channels.
        """
        alpha = self.affinity(semantics, depth)
        return (
            semantics + torch.einsum("bij,bjhw->bihw", alpha, depth),
            depth + torch.einsum("bij,bihw->bjhw", alpha, semantics),
        )


def separate_objects(labels: Tensor, movable: Collection[int]) -> Tensor:
    """The connected pieces (4 neighbours) of movable classes in labels (H, W): masks (N, H, W) bool, from the top left.

    Two things of one class that touch are one piece.

    Examples:
        >>> separate_objects(torch.tensor([[2, 0, 2], [2, 0, 0]]), movable=(2,)).int().tolist()
        [[[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]]
    """
    height, width = labels.shape
    inside = _any_of(labels, movable)
    names = torch.arange(height * width, 0, -1, device=labels.device).view(height, width) * inside
    while True:  # the largest name of a piece spreads over it, a pixel each time
        spread = names.clone()
        for own, other in (
            ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
            ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
            ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
            ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ):
            alike = (labels[own] == labels[other]) & inside[own] & inside[other]
            spread[own] = torch.where(alike, torch.maximum(spread[own], spread[other]), spread[own])
        if torch.equal(spread, names):
            break
        names = spread
    pieces = names[inside].unique().flip(0)
    return names[None] == pieces[:, None, None]


def paste_at_depth(
    source: DepthScene, target: DepthScene, mask: Tensor, depth: float, shift: float = 0.0, horizon: float | None = None
) -> tuple[DepthScene, Tensor]:
    """Move one object of `source` to another depth, and lay it into `target` where nothing nearer stands.

    A level camera sees the foot of a thing on the ground at ``horizon + f h / z``, f h being its focal length times its
    height. Moved along the line of sight from z_old to z_new, a thing is seen scaled by s = z_old / z_new about the
    vanishing point: row y goes to ``horizon + s (y - horizon)``, so that its foot stays on the ground, whatever f h is.
    A shift to the side keeps it there, too. z_old is the median depth in the mask; all of the object moves by
    z_new - z_old, so that its own relief stays as it is.

    Args:
        source: where the object is.
        target: where it goes; of the same size and with the same horizon, and left as it is.
        mask: (H, W) bool, the object in `source`.
        depth: z_new.
        shift: pixels to the right, after scaling about the middle column.
        horizon: the row of the vanishing point, in pixels from the top edge; the middle row if not given.

    Returns:
        The mixed scene, and (H, W) bool where the object is in it. Colours are interpolated from the object's own
        pixels alone; labels and depths are those of the nearest pixel.

    Raises:
        SymbiosisError: if sizes differ, the mask is empty, or a depth is not positive.

    Examples:
        >>> near = DepthScene(torch.ones(3, 4, 4), torch.full((4, 4), 2), torch.full((4, 4), 1.0))
        >>> empty = DepthScene(torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 9.0))
        >>> mixed, pasted = paste_at_depth(near, empty, torch.ones(4, 4, dtype=torch.bool), depth=2.0)
        >>> mixed.labels.tolist()  # twice as far: half as large
        [[0, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]]
        >>> mixed.depth[1, 1].item()
        2.0
    """
    _check_scene(source, "source")
    _check_scene(target, "target")
    height, width = mask.shape
    if source.labels.shape != mask.shape or target.labels.shape != mask.shape:
        raise SymbiosisError(
            f"source {tuple(source.labels.shape)}, target {tuple(target.labels.shape)} and mask {tuple(mask.shape)} "
            "differ in size. Give all three as (H, W)."
        )
    if not mask.any():
        raise SymbiosisError("the mask of the object is empty. Give one with at least one pixel.")
    before = float(source.depth[mask].median())
    if not (depth > 0 and before > 0):
        raise SymbiosisError(f"depths {before} and {depth} cannot be scaled between. Give depths above 0.")
    scale = before / depth
    level = height / 2 if horizon is None else horizon
    # For the middle of each pixel of the target, where it is in the source: edges of pictures are at 0 and H.
    rows = (torch.arange(height, device=mask.device, dtype=torch.float32) + 0.5 - level) / scale + level
    columns = (
        torch.arange(width, device=mask.device, dtype=torch.float32) + 0.5 - width / 2 - shift
    ) / scale + width / 2
    at_row, at_column = rows.floor().long(), columns.floor().long()
    seen = ((at_row >= 0) & (at_row < height))[:, None] & ((at_column >= 0) & (at_column < width))
    at_row, at_column = at_row.clamp(0, height - 1)[:, None], at_column.clamp(0, width - 1)
    moved_depth = source.depth[at_row, at_column] + (depth - before)
    pasted = seen & mask[at_row, at_column] & (moved_depth > 0) & (moved_depth < target.depth)
    place = torch.stack(
        torch.broadcast_tensors(columns[None] * 2 / width - 1, rows[:, None] * 2 / height - 1), dim=-1
    ).to(source.picture.dtype)
    inked = torch.cat([source.picture * mask, mask[None].to(source.picture.dtype)])
    drawn = functional.grid_sample(inked[None], place[None], mode="bilinear", align_corners=False)[0]
    colours = drawn[:3] / drawn[3:].clamp_min(1e-6)  # the surroundings of the object do not bleed into it
    return (
        DepthScene(
            torch.where(pasted, colours, target.picture),
            torch.where(pasted, source.labels[at_row, at_column], target.labels),
            torch.where(pasted, moved_depth.to(target.depth.dtype), target.depth),
        ),
        pasted,
    )


@dataclass(frozen=True)
class AffineMix:
    """Depth augments semantics: an object of one scene goes into another, at another depth and its size there.

    One piece of a movable class of the source is drawn, then a depth, even in 1 / z within `depths`, and a shift to the
    side; `paste_at_depth` does the rest. Where the source has nothing that moves, the target is given back.

    Args:
        movable: the classes that are moved.
        depths: nearest and farthest depth to move to.
        shift: up to how large a part of the width the object goes aside.
        horizon: the row of the vanishing point as a part of the height, from the top.

    Raises:
        SymbiosisError: if `depths` are not 0 < nearest <= farthest.

    Examples:
        >>> mix = AffineMix(movable=(2,), depths=(1.0, 4.0))
        >>> near = DepthScene(torch.ones(3, 4, 4), torch.full((4, 4), 2), torch.full((4, 4), 1.0))
        >>> empty = DepthScene(torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 9.0))
        >>> mixed, pasted = mix(near, empty, torch.Generator().manual_seed(0))
        >>> bool((mixed.labels[pasted] == 2).all())
        True
    """

    movable: Collection[int]
    depths: tuple[float, float]
    shift: float = 0.25
    horizon: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.depths[0] <= self.depths[1]:
            raise SymbiosisError(f"depths={self.depths} are out of order. Give the nearest first, both above 0.")

    def __call__(
        self, source: DepthScene, target: DepthScene, generator: torch.Generator | None = None
    ) -> tuple[DepthScene, Tensor]:
        """The mixed scene, and (H, W) bool where the object is in it. `generator` is of the CPU."""
        pieces = separate_objects(source.labels, self.movable)
        if not len(pieces):
            return target, torch.zeros_like(target.labels, dtype=torch.bool)
        picked = int(torch.randint(len(pieces), (), generator=generator))
        part, aside = torch.rand(2, generator=generator).tolist()
        nearest, farthest = self.depths
        depth = 1 / ((1 - part) / nearest + part / farthest)
        height, width = source.labels.shape
        shift = (2 * aside - 1) * self.shift * width
        return paste_at_depth(source, target, pieces[picked], depth, shift, self.horizon * height)


@dataclass(frozen=True)
class ColorAug:
    """Semantics augment depth: what moves and what stands still change colour apart, and depth must not care.

    Brightness, contrast, saturation and hue of movable pixels are changed by one draw, those of the rest by another.
    Labels and depth are given back as they are: the depth to learn is that of the picture as it was taken. Where depth
    is learned from neighbouring frames, the loss is to be computed on the frames as they were.

    Args:
        movable: the classes that move.
        brightness: factors from 1 - brightness to 1 + brightness.
        contrast: as brightness, about the mean grey of the pixels that are changed together.
        saturation: as brightness, about each pixel's grey.
        hue: turns of the colour about the axis of greys, up to this part of a full turn, 0.5 at most.

    Raises:
        SymbiosisError: if an amount is out of range.

    Examples:
        >>> scene = DepthScene(torch.rand(3, 4, 4), torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4))
        >>> changed = ColorAug(movable=(2,))(scene, torch.Generator().manual_seed(0))
        >>> changed.depth is scene.depth, changed.labels is scene.labels, torch.equal(changed.picture, scene.picture)
        (True, True, False)
    """

    movable: Collection[int]
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (amount := getattr(self, name)) <= 1:
                raise SymbiosisError(f"{name}={amount} is out of range. Give a number from 0 to 1.")
        if not 0 <= self.hue <= 0.5:
            raise SymbiosisError(f"hue={self.hue} is out of range. Give turns of the hue from 0 to 0.5.")

    def __call__(self, scene: DepthScene, generator: torch.Generator | None = None) -> DepthScene:
        """The scene with another picture, in [0, 1]; the same labels and depth. `generator` is of the CPU."""
        _check_scene(scene, "scene")
        moves = _any_of(scene.labels, self.movable)
        picture = self._jitter(scene.picture, moves, generator)
        return scene._replace(picture=self._jitter(picture, ~moves, generator))

    def _jitter(self, picture: Tensor, where: Tensor, generator: torch.Generator | None) -> Tensor:
        draws = (2 * torch.rand(4, generator=generator) - 1).tolist()
        if not where.any():
            return picture
        brightness, contrast, saturation = (
            1 + draw * amount
            for draw, amount in zip(draws[:3], (self.brightness, self.contrast, self.saturation), strict=True)
        )
        luma = picture.new_tensor(LUMA)
        changed = picture * brightness
        mean = torch.einsum("c,chw->hw", luma, changed)[where].mean()
        changed = mean + contrast * (changed - mean)
        grey = torch.einsum("c,chw->hw", luma, changed)
        changed = grey + saturation * (changed - grey)
        changed = torch.einsum("ij,jhw->ihw", turn_of_hue(draws[3] * self.hue).to(picture), changed)
        return torch.where(where, changed.clamp(0, 1), picture)


def turn_of_hue(turns: float) -> Tensor:
    """(3, 3) float32 that turns colours about the axis of greys: a third of a turn makes red green.

    Examples:
        >>> (turn_of_hue(1 / 3) @ torch.tensor([1.0, 0.0, 0.0])).abs().round().tolist()
        [0.0, 1.0, 0.0]
    """
    angle = 2 * math.pi * turns
    cosine, side = math.cos(angle), math.sin(angle) / math.sqrt(3)
    own, ahead, behind = (1 + 2 * cosine) / 3, (1 - cosine) / 3 + side, (1 - cosine) / 3 - side
    return torch.tensor([[own, behind, ahead], [ahead, own, behind], [behind, ahead, own]])


def _any_of(labels: Tensor, classes: Collection[int]) -> Tensor:
    return torch.isin(labels, torch.tensor(sorted(classes), dtype=labels.dtype, device=labels.device))


def _check_scene(scene: DepthScene, name: str) -> None:
    size = scene.labels.shape
    if len(size) != 2 or scene.picture.shape != (3, *size) or scene.depth.shape != size:
        raise SymbiosisError(
            f"the {name} has a picture {tuple(scene.picture.shape)}, labels {tuple(size)} and depth "
            f"{tuple(scene.depth.shape)}. Give (3, H, W), (H, W) and (H, W)."
        )
    if not scene.picture.is_floating_point():
        raise SymbiosisError(f"the {name} has a picture of {scene.picture.dtype}. Give floats from 0 to 1.")
