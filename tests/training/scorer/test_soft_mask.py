"""The soft mask on every model family: what enters the language model, what it says, and where gradients go."""

import math
from typing import get_args

import pytest
import torch

import tiny_models as zoo_module
from foveate.budget import Budget
from foveate.models import adapter_of
from foveate.training import Example, TrainableScorer
from foveate.training.scorer.data import answer_losses, batch_of
from foveate.training.scorer.gates import Gate
from foveate.training.scorer.soft_mask import soft_mask
from tiny_models import Zoo, inputs, picture, video_inputs
from training.helpers import entering


def scorer_of(zoo: Zoo, spread: float = 0.5) -> TrainableScorer:
    return TrainableScorer(zoo.model.config.get_text_config().hidden_size, spread=spread, seed=3)


def all_pairs(scorer: TrainableScorer, features: torch.Tensor, keep: float) -> torch.Tensor:
    """The mask of one image by the N x N map of all pairs, a loop for t, and no code of the package."""
    q, k = scorer.q_proj(features), scorer.k_proj(features)
    scores = (q @ k.T / math.sqrt(q.shape[1])).mean(1).double()
    low, high = -1e3, 1e3
    for _ in range(100):
        t = (low + high) / 2
        low, high = (low, t) if (scores + t).sigmoid().sum() > math.floor(keep * len(scores) + 0.5) else (t, high)
    return (scores + t).sigmoid().float()


def check_entering(zoo: Zoo, batch: dict) -> None:
    scorer = scorer_of(zoo)
    with torch.no_grad():
        plain = entering(zoo, batch)
        with soft_mask(zoo.model, scorer, Budget(0.25), "embeddings") as mask:
            masked = entering(zoo, batch)
        with soft_mask(zoo.model, scorer, Budget(0.25), "attention"):
            weighted = entering(zoo, batch)["attention_mask"].exp()
        again = entering(zoo, batch)
        factors = torch.ones(batch["input_ids"].shape)
        wanted = []
        for row, ids in enumerate(batch["input_ids"]):
            at = sum(ids == one for one in zoo.visual_ids).bool()
            factors[row, at] = all_pairs(scorer, plain["inputs_embeds"][row, at], 0.25)
            target = torch.zeros(int(at.sum()))
            target[factors[row, at].topk(math.floor(0.25 * len(target) + 0.5)).indices] = 1
            wanted.append(torch.nn.functional.binary_cross_entropy(factors[row, at], target))
    torch.testing.assert_close(masked["inputs_embeds"], plain["inputs_embeds"] * factors[..., None])
    seen = batch["attention_mask"][:, None] * torch.ones(factors.shape[1], factors.shape[1]).tril()
    torch.testing.assert_close(weighted[:, 0], seen * factors[:, None])
    assert (factors.std() > 0.1) and torch.equal(again["inputs_embeds"], plain["inputs_embeds"])
    torch.testing.assert_close(mask.take().constraint, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    if (deep := adapter_of(zoo.model).deepstack) is not None:
        each = factors[plain[deep.mask]][:, None]
        assert len(masked[deep.rows]) > 0
        for got, rows in zip(masked[deep.rows], plain[deep.rows], strict=True):
            torch.testing.assert_close(got, rows * each)


def test_each_token_is_let_through_by_the_soft_top_k(zoo: Zoo) -> None:
    check_entering(zoo, inputs(zoo, [[picture(112, 112, 1)], [picture(112, 112, 2)]]))


@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_clips_are_masked_as_images_are(make) -> None:
    check_entering(make(), video_inputs(make(), frames=3))


def examples(zoo: Zoo) -> list[Example]:
    answers = ([7, 9, 2], [11, 2])
    texts = ("what is in the picture?", "a red square on a blue")
    return [
        Example(inputs(zoo, [[picture(112, 112, seed)]], [text]), torch.tensor(answer))
        for seed, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


@pytest.mark.parametrize("gate", get_args(Gate))
def test_a_batch_loses_what_its_prompts_lose_one_by_one(zoo: Zoo, gate: Gate) -> None:
    scorer, alone = scorer_of(zoo), []
    with torch.no_grad(), soft_mask(zoo.model, scorer, Budget(0.25), gate) as mask:
        for example in examples(zoo):
            alone.append((answer_losses(zoo.model, *batch_of([example], 0)), mask.take()))
        losses, masked = answer_losses(zoo.model, *batch_of(examples(zoo), 0)), mask.take()
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in alone]), rtol=1e-4, atol=1e-4)
    for name in ("constraint", "agreement"):
        each = torch.cat([getattr(one, name) for _, one in alone])
        torch.testing.assert_close(getattr(masked, name), each, rtol=1e-4, atol=1e-4)


def test_answer_losses_are_those_of_transformers_labels(zoo: Zoo) -> None:
    example = examples(zoo)[0]
    batch, labels = batch_of([example], 0)
    full = torch.full_like(batch["input_ids"], -100)
    full[:, -labels.shape[1] :] = labels
    with torch.no_grad():
        wanted = zoo.model(**batch, labels=full).loss
        torch.testing.assert_close(answer_losses(zoo.model, batch, labels)[0], wanted)


@pytest.mark.parametrize("gate", get_args(Gate))
def test_gradients_are_those_of_the_loss_and_of_nothing_else(zoo: Zoo, gate: Gate) -> None:
    """Along a random direction in the scorer's weights the loss changes as its gradient says."""
    scorer, batch = scorer_of(zoo), batch_of(examples(zoo), 0)

    def loss() -> torch.Tensor:
        with soft_mask(zoo.model, scorer, Budget(0.25), gate) as mask:
            answers = answer_losses(zoo.model, *batch)
            return (answers + 0.5 * mask.take().constraint).mean()

    zoo.model.requires_grad_(False)
    try:
        loss().backward()
    finally:
        zoo.model.requires_grad_(True)
    assert all(parameter.grad is None for parameter in zoo.model.parameters())
    steps = {name: torch.randn_like(p) for name, p in scorer.named_parameters()}
    slope = sum((p.grad * steps[name]).sum() for name, p in scorer.named_parameters())
    sides, far = [], 1e-3
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in scorer.named_parameters():
                parameter += sign * far * steps[name]
            sides.append(loss())
    torch.testing.assert_close(slope, (sides[0] - sides[1]) / (2 * far), rtol=0.05, atol=1e-3)
    assert slope.abs() > 1e-3
