"""Tokens that are evidence: by boxes drawn by hand, by attention, and by the gradient of the answer's loss."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from PIL import Image

from foveate.data.samples import Sample
from foveate.models import adapter_of
from foveate.models.llava_next import TiledGrid
from foveate.testbed.oracle import rank_tokens
from foveate.tokens import Grid
from foveate.training import Example, TrainingError
from foveate.training.evidence.labels import PictureBoxes, boxes_of, covered, largest, read_attention, read_gradient
from foveate.training.evidence.learner import balanced_losses
from foveate.training.scorer.data import answer_losses, batch_of
from runtime.helpers import kernels
from tiny_models import Zoo, inputs, llava, picture, qwen2_5_vl

WHOLE = (40, 30)  # of a picture on 4 x 3 tokens: a token is 10 pixels wide and high


def marked(boxes, grid: Grid, size: tuple[int, int] = WHOLE, edges: tuple[float, ...] | None = None) -> list[int]:
    picture = PictureBoxes(boxes, size, edges or (0, 0, *size))
    return covered([picture], [grid])[0].nonzero()[:, 0].tolist()


def test_boxes_drawn_by_hand() -> None:
    grid = Grid(3, 4)
    assert marked((((0, 0, 10, 10),),), grid) == [0]
    assert marked((((9, 9, 11, 11),),), grid) == [0, 1, 4, 5]
    assert marked((((30, 20, 99, 99), (15, 0, 16, 30)),), grid) == [1, 5, 9, 11]
    assert marked(((),), grid) == []
    # Half the grid on a picture of which it sees the right half, and a picture of another size.
    assert marked((((25, 0, 26, 1),),), grid, edges=(20, 0, 40, 30)) == [1]
    assert marked((((0, 0, 200, 100),),), Grid(2, 2), size=(400, 200)) == [0]


def test_boxes_of_clips_and_tiles() -> None:
    clip = (((0, 0, 1, 1),), (), (), ((39, 29, 40, 30),))  # four frames, of which two share tokens
    assert marked(clip, Grid(3, 4, frames=2)) == [0, 23]
    one = PictureBoxes((((0, 0, 10, 30),),), (40, 30), (0, 0, 40, 30))
    left, right, small = covered([one], [Grid(2, 2), Grid(2, 2), Grid(2, 2)])  # two tiles side by side, and all again
    assert (left.tolist(), right.any(), small.tolist()) == ([True, False] * 2, torch.tensor(False), [True, False] * 2)
    overview, tiled = covered([one], [Grid(2, 2), TiledGrid(1, 4, down=1, across=2, shown=(1, 4))])
    assert (overview.tolist(), tiled.tolist()) == ([True, False] * 2, [True, False, False, False])
    with pytest.raises(TrainingError, match="cannot be told apart"):
        covered([one, one], [Grid(2, 2)] * 5)


def test_the_same_tokens_as_the_oracle_knows() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        x, y, width, height = (100 * torch.rand(4, generator=generator)).tolist()
        boxes = (((x, y, x + width / 4 + 0.1, y + height / 4 + 0.1),),)
        assert marked(boxes, Grid(14, 14), (112, 112)) == sorted(rank_tokens(Grid(14, 14), boxes, cell=8))


def test_a_crop_hides_what_lies_outside() -> None:
    size = {"height": 56, "width": 56}
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=size)
    processor = type("Processor", (), {"image_processor": images})
    sample = Sample("1", "?", ("a",), (Image.new("RGB", (224, 112)),), boxes=(((0, 0, 50, 112), (60, 0, 100, 50)),))
    (shown,) = boxes_of(processor, sample)
    assert shown.edges == (56, 0, 168, 112)
    assert covered([shown], [Grid(2, 2)])[0].tolist() == [True, False, False, False]
    assert boxes_of(processor, Sample("1", "?", ("a",), sample.pictures)) == ()


def examples(zoo: Zoo) -> list[Example]:
    answers = (torch.tensor([45, 2]), torch.tensor([46, 47, 2]))
    return [
        Example(inputs(zoo, [[picture(112, size, seed)]]), answer)
        for seed, (size, answer) in enumerate(zip((112, 56 if zoo.mrope else 112), answers, strict=True))
    ]


@pytest.mark.parametrize("make", [llava, qwen2_5_vl])
def test_attention_is_that_of_eager_layers(make) -> None:
    zoo, each = make(), examples(make())
    found = read_attention(zoo.model, each, 0)
    with kernels(zoo.model, "eager"):
        for row, example in enumerate(each):
            with torch.no_grad():
                rows = zoo.model(**example.inputs, output_attentions=True).attentions
            visual = example.inputs["input_ids"][0] == zoo.visual_ids[0]
            wanted = torch.stack([one[0, :, -1, visual].mean(0) for one in rows[:-1]]).mean(0)
            torch.testing.assert_close(found[row, : len(wanted)], wanted, atol=1e-5, rtol=1e-4)


def test_the_gradient_is_what_a_small_change_does() -> None:
    zoo = llava()
    each = examples(zoo)
    found = read_gradient(zoo.model, each, 0)
    inputs_there, labels = batch_of(each[:1], 0)
    places = (inputs_there["input_ids"][0] == zoo.visual_ids[0]).nonzero()[:, 0]
    length = inputs_there["input_ids"].shape[1]

    def loss(token: int, change: float) -> float:
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[:, places[token]] += change
        text = adapter_of(zoo.model).text
        hook = text.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask[None, None]}), with_kwargs=True
        )
        try:
            with torch.no_grad():
                return float(answer_losses(zoo.model, inputs_there, labels))
        finally:
            hook.remove()

    for token in (0, 7):
        wanted = abs(loss(token, 0.02) - loss(token, -0.02)) / 0.04
        assert abs(float(found[0, token]) - wanted) < 0.05 * wanted + 1e-3


def test_the_largest_of_each_image() -> None:
    values = torch.tensor([[1.0, 4.0, 3.0, 2.0], [5.0, 6.0, 9.0, 9.0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    assert largest(values, valid, 0.5).tolist() == [[False, True, True, False], [False, True, False, False]]


def test_labels_are_balanced_within_a_prompt() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.0, 0.0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([[True, False, False], [False, True, False], [False] * 3])
    valid = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    losses = balanced_losses(scores, labels, valid, torch.tensor([0, 0, 1]), 2)
    soft = torch.nn.functional.softplus
    wanted = soft(torch.tensor([-2.0, 0.0])).mean() + soft(torch.tensor([-1.0, 0.5, 0.3])).mean()
    torch.testing.assert_close(losses, torch.stack([wanted, torch.tensor(0.0)]))
