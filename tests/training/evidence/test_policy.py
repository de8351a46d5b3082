"""Draws of tokens: their probabilities sum to 1, they come as often as these say, and their gradient is right."""

from __future__ import annotations

import itertools

import torch

from foveate.selection import mmr
from foveate.training.evidence.policy import draw, pick


def tiny() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and features of one row of four tokens and one of padding, and which are real."""
    generator = torch.Generator().manual_seed(3)
    scores, features = torch.randn(1, 5, generator=generator), torch.randn(1, 5, 3, generator=generator)
    return scores, features, torch.tensor([[True, True, False, True, True]])


def log_probability(scores: torch.Tensor, features: torch.Tensor, order: tuple[int, ...], diversity: torch.Tensor):
    """Of an order of tokens, written from the rule: one after the other, by the softmax over those that are left."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    total, left = torch.zeros(()), [0, 1, 3, 4]
    for step, token in enumerate(order):
        logits = torch.stack(
            [
                scores[one] - (diversity * max(unit[one] @ unit[before] for before in order[:step]) if step else 0)
                for one in left
            ]
        )
        total = total + logits.log_softmax(0)[left.index(token)]
        left.remove(token)
    return total


def test_all_draws_together_have_probability_one_and_come_as_often_as_they_should() -> None:
    scores, features, valid = tiny()
    diversity = torch.tensor(0.7)
    exact = {
        order: float(log_probability(scores[0], features[0], order, diversity).exp())
        for order in itertools.permutations((0, 1, 3, 4), 2)
    }
    assert abs(sum(exact.values()) - 1) < 1e-5
    many = 20_000
    rows = [one.expand(many, *one.shape[1:]) for one in (scores, features, valid)]
    torch.manual_seed(0)
    made = draw(*rows, torch.full((many,), 2), diversity, 2)
    drawn = [tuple(row) for row in made.picks.tolist()]
    assert set(drawn) == set(exact)
    for order, probability in exact.items():
        found = [number for number, one in enumerate(drawn) if one == order]
        assert abs(len(found) / many - probability) < 4 * (probability * (1 - probability) / many) ** 0.5
        assert abs(float(made.log_probability[found[0]].exp()) - probability) < 1e-5


def test_the_gradient_of_an_expected_reward_is_that_of_autograd() -> None:
    """The mean over all draws of reward times gradient of the log probability, for scores and for the diversity."""
    scores, features, valid = tiny()
    reward = {order: float(sum(order) + order[0]) for order in itertools.permutations((0, 1, 3, 4), 2)}

    exact = [scores[0].clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)]
    terms = [log_probability(exact[0], features[0], order, exact[1]).exp() * reward[order] for order in reward]
    wanted = torch.autograd.grad(torch.stack(terms).sum(), exact)

    many = 20_000
    learned = [scores.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)]
    torch.manual_seed(1)
    rows = (learned[0].expand(many, 5), features.expand(many, 5, 3), valid.expand(many, 5))
    made = draw(*rows, torch.full((many,), 2), learned[1], 2)
    rewards = torch.tensor([reward[tuple(row)] for row in made.picks.tolist()])
    found = torch.autograd.grad(((rewards - rewards.mean()) * made.log_probability).mean(), learned)
    torch.testing.assert_close(found[0][0], wanted[0], atol=0.06, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=0.06, rtol=0)


def test_rows_of_several_counts_and_the_most_probable_draw() -> None:
    generator = torch.Generator().manual_seed(8)
    scores, features = torch.randn(3, 12, generator=generator), torch.randn(3, 12, 4, generator=generator)
    valid = torch.arange(12) < torch.tensor([12, 9, 5])[:, None]
    counts = torch.tensor([4, 7, 1])
    picks = pick(scores, features, valid, counts, torch.tensor(1.5), 7)
    assert (picks >= 0).sum(1).tolist() == counts.tolist()
    kept = mmr(features, scores, counts, balance=1 / 2.5, valid=valid, normalise=False)
    for row in range(3):
        assert sorted(picks[row][picks[row] >= 0].tolist()) == kept[row].nonzero()[:, 0].tolist()
    made = draw(scores, features, valid, counts, torch.tensor(1.5), 7)
    for row in range(3):
        chosen = made.picks[row][made.picks[row] >= 0].tolist()
        assert len(set(chosen)) == int(counts[row]) and valid[row, chosen].all()
