"""Semantics and depth learned apart and together, on drawn scenes: what CCAM, AffineMix and ColorAug are worth there.

Each scene is 32 x 32: the sky, a ground plane under a level camera, and circles, squares and triangles that stand on
the ground at random depths. Few training scenes have labels, all have depth. Six ways to train are compared, each with
several seeds; a seed draws its own training scenes and weights, and the test scenes are the same for all.

Usage: python examples/companions/symbiosis.py [--seeds 6] [--steps 300]
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from foveate.companions.symbiosis import AffineMix, ColorAug, CrossChannelAttention, DepthScene
from foveate.testbed.drawing import ink, paint, shape
from foveate.testbed.lexicon import COLOURS

SIDE = 32  # pixels
SKY, GROUND, THINGS = 0, 1, ("circle", "square", "triangle")
MOVABLE = range(2, 2 + len(THINGS))
CLASSES = 2 + len(THINGS)
HORIZON = 0.375  # of the height: row 12
GROUND_SCALE = 30.0  # focal length in pixels times the camera's height: the ground at depth z is seen 30 / z below
NEAREST, FARTHEST = 1.8, 8.0  # where things stand
SKY_DEPTH = 40.0
LABELLED, UNLABELLED, TESTED = 24, 168, 200  # scenes
BATCH = 8  # of each kind


def draw_scene(rng: np.random.Generator) -> DepthScene:
    """A scene with one to four things, the farthest drawn first."""
    horizon = HORIZON * SIDE
    below = np.maximum(np.arange(SIDE) + 0.5 - horizon, 0)[:, None] * np.ones((1, SIDE))
    depth = np.where(below > 0, GROUND_SCALE / np.maximum(below, 0.5), SKY_DEPTH)
    labels = np.where(below > 0, GROUND, SKY)
    sky, ground = np.array([[150, 175, 205], [125, 115, 100]]) + rng.uniform(-30, 30, (2, 3))
    canvas = np.where(below[..., None] > 0, ground, sky).astype(np.float32)
    coarse = rng.normal(0, 10, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    canvas += coarse + rng.normal(0, 10, canvas.shape)
    for z in sorted(1 / rng.uniform(1 / FARTHEST, 1 / NEAREST, rng.integers(1, 5)), reverse=True):
        size = max(3, round(GROUND_SCALE / z * rng.uniform(0.5, 0.9)))
        foot = min(round(horizon + GROUND_SCALE / z), SIDE)
        x, y = int(rng.integers(0, SIDE - size + 1)), max(foot - size, 0)
        kind = int(rng.integers(len(THINGS)))
        alpha = shape(THINGS[kind], size)[: SIDE - y]
        paint(canvas, alpha, ink(rng, list(COLOURS)[rng.integers(len(COLOURS))]) * rng.uniform(0.6, 1.0), x, y)
        solid = alpha > 0.5
        labels[y : y + size, x : x + size][solid] = 2 + kind
        depth[y : y + size, x : x + size][solid] = z
    picture = torch.from_numpy(np.clip(canvas / 255, 0, 1).astype(np.float32)).permute(2, 0, 1).contiguous()
    return DepthScene(picture, torch.from_numpy(labels), torch.from_numpy(depth.astype(np.float32)))


def stack(scenes: list[DepthScene]) -> DepthScene:
    """One scene with a leading axis of many."""
    return DepthScene(*(torch.stack(part) for part in zip(*scenes, strict=True)))


@dataclass(frozen=True)
class Way:
    """A way to train."""

    shared: bool = True  # one encoder for both tasks
    attention: bool = True  # CCAM before the last stage of the decoders
    mix: bool = False
    colour: bool = False


WAYS = {
    "apart": Way(shared=False, attention=False),
    "shared encoder": Way(attention=False),
    "with CCAM": Way(),
    "CCAM, AffineMix": Way(mix=True),
    "CCAM, ColorAug": Way(colour=True),
    "all three": Way(mix=True, colour=True),
}


def block(into: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1), nn.GroupNorm(4, out), nn.ReLU())


class Encoder(nn.Module):
    """Pictures with their rows as a fourth channel (so few layers do not see whole pictures) -> two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = block(4, 16, 2), nn.Sequential(block(16, 16, 2), block(16, 16))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.linspace(-1, 1, SIDE)[:, None].expand(len(pictures), 1, SIDE, SIDE)
        fine = self.fine(torch.cat([pictures * 2 - 1, rows], 1))
        return fine, self.coarse(fine)


class TwoTasks(nn.Module):
    """Logits of labels (B, classes, H, W) and the logarithm of depth (B, H, W)."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder() for _ in range(1 if way.shared else 2))
        self.middles = nn.ModuleList(block(32, 16) for _ in range(2))
        self.share = CrossChannelAttention(16) if way.attention else None
        self.lasts = nn.ModuleList(
            nn.Sequential(block(16, 16), nn.Conv2d(16, 4 * out, 1), nn.PixelShuffle(2)) for out in (CLASSES, 1)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        read = [encoder(pictures) for encoder in self.encoders]
        features = []
        for task, middle in enumerate(self.middles):
            fine, coarse = read[task % len(read)]
            features.append(middle(torch.cat([fine, functional.interpolate(coarse, scale_factor=2)], 1)))
        if self.share is not None:
            features = list(self.share(*features))
        semantics, depth = (last(one) for last, one in zip(self.lasts, features, strict=True))
        return semantics, depth[:, 0] + 1.5


def train(way: Way, labelled: list[DepthScene], unlabelled: list[DepthScene], seed: int, steps: int) -> TwoTasks:
    """Labels are learned from `labelled`, depth from both."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TwoTasks(way)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    clean, more = stack(labelled), stack(unlabelled)
    mix, colour = AffineMix(MOVABLE, (NEAREST, FARTHEST), horizon=HORIZON), ColorAug(MOVABLE)
    if way.mix:
        pairs = torch.randint(len(labelled), (8 * len(labelled), 2), generator=generator).tolist()
        mixed = stack([mix(labelled[a], labelled[b], generator)[0] for a, b in pairs])
    for step in range(steps):
        picked = torch.randint(len(labelled), (BATCH,), generator=generator)
        own = DepthScene(*(part[picked] for part in clean))
        true_depth = torch.ones(2 * BATCH, dtype=torch.bool)
        if way.mix:  # half of the scenes with labels; they teach labels alone
            half = BATCH // 2
            picked = torch.randint(len(mixed.labels), (half,), generator=generator)
            own = DepthScene(*(torch.cat([part[:half], new[picked]]) for part, new in zip(own, mixed, strict=True)))
            true_depth[half:BATCH] = False
        picked = torch.randint(len(unlabelled), (BATCH,), generator=generator)
        pictures, depth = more.picture[picked], more.depth[picked]
        if way.colour and step > steps // 3:  # by labels that the model itself predicts for half of the others
            half = BATCH // 2
            with torch.no_grad():
                predicted = model(pictures[:half])[0].argmax(1)
            changed = [
                colour(DepthScene(*one), generator).picture
                for one in zip(pictures[:half], predicted, depth[:half], strict=True)
            ]
            pictures = torch.cat([torch.stack(changed), pictures[half:]])
        semantics, log_depth = model(torch.cat([own.picture, pictures]))
        error = (log_depth - torch.cat([own.depth, depth]).log()).abs().mean((1, 2))
        loss = functional.cross_entropy(semantics[:BATCH], own.labels) + error[true_depth].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


MEASURES = ("mIoU", "depth error", "depth error, things")


@torch.no_grad()
def measure(model: TwoTasks, tested: DepthScene) -> list[float]:
    """Mean intersection over union; mean |z - z*| / z* without the sky, and on things alone."""
    semantics, log_depth = model(tested.picture)
    labels, truth = semantics.argmax(1), tested.labels
    shares = [((labels == c) & (truth == c)).sum() / ((labels == c) | (truth == c)).sum() for c in range(CLASSES)]
    error = (log_depth.exp() - tested.depth).abs() / tested.depth
    return [float(torch.stack(shares).mean()), float(error[truth != SKY].mean()), float(error[truth > GROUND].mean())]


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval (Student's t over seeds)."""
    mean = values.mean()
    if len(values) < 2:
        return f"{mean:6.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{mean:6.2f} [{mean - half:6.2f}, {mean + half:6.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    rng = np.random.default_rng(10_000)
    tested = stack([draw_scene(rng) for _ in range(TESTED)])
    found = np.zeros((len(WAYS), arguments.seeds, len(MEASURES)))
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        scenes = [draw_scene(rng) for _ in range(LABELLED + UNLABELLED)]
        for at, way in enumerate(WAYS.values()):
            model = train(way, scenes[:LABELLED], scenes[LABELLED:], seed, arguments.steps)
            found[at, seed] = measure(model, tested)
    found *= 100
    print(f"{arguments.seeds} seeds, {arguments.steps} steps, {LABELLED} of {LABELLED + UNLABELLED} scenes with labels")
    compared = {"percent": found, "minus apart, same seed": found - found[:1]}
    for title, values in compared.items():
        print(f"\n{title:22}" + "".join(f"{name:>26}" for name in MEASURES))
        for name, rows in list(zip(WAYS, values, strict=True))[values is not found :]:
            print(f"{name:22}" + "".join(f"{interval(column):>26}" for column in rows.T))
    sizes = {name: sum(p.numel() for p in TwoTasks(way).parameters()) for name, way in list(WAYS.items())[:3]}
    print("\nparameters: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    print(f"{time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
