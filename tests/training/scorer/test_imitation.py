"""A scorer for a block of the encoder: what it is taught, that it learns it, that it resumes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from foveate import InEncoder, get_method, prune
from foveate.errors import FoveateError
from foveate.importance import LearnedScorer
from foveate.models import adapter_of
from foveate.training import Example, ImitationLog, ScorerRecipe, TrainingError, train_scorer
from foveate.training.scorer.imitation import SHARES, Imitation
from tiny_models import Zoo, inputs, picture, video_inputs
from training.helpers import check_resuming

BLOCK, KEEP = 1, 0.4
RECIPE = ScorerRecipe(
    keep=KEEP, epochs=8, batch=4, learning_rate=3e-2, warmup=0.0, at=f"encoder:{BLOCK}", teacher="divprune"
)


def train(zoo: Zoo, out: Path, recipe: ScorerRecipe = RECIPE, **options) -> list[ImitationLog]:
    def encode(seed: int) -> Example:
        shown = inputs(zoo, [[picture(112, 112 + 28 * (seed % 2), seed)]]) if seed else video_inputs(zoo)
        return Example(shown, torch.tensor([40, 2]))

    logs: list[ImitationLog] = []
    train_scorer(zoo.model, encode, range(4), recipe, out, **{"on_step": logs.append, "micro_batch": 4, **options})
    return logs


def test_what_is_taught(qwen: Zoo) -> None:
    """Hidden states at the block, averaged over patches by hand; what the teacher keeps when it prunes by itself."""
    shown = inputs(qwen, [[picture(112, 140, 3)], [picture(56, 84, 4)]])
    entered: list[torch.Tensor] = []
    blocks = adapter_of(qwen.model).vision_layers()
    handle = blocks[BLOCK].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    imitation = Imitation(qwen.model, "divprune", BLOCK, KEEP)
    with torch.no_grad(), handle:
        plain = qwen.model(**shown).logits
        with imitation.attach():
            assert torch.equal(qwen.model(**shown).logits, plain)  # watching changes nothing
        features, valid, targets, kept = imitation.take()
        wanted = torch.zeros_like(targets)
        for share in SHARES:
            with prune(qwen.model, "divprune", keep=KEEP * share) as pruning:
                qwen.model(**shown)
            for row, image in enumerate(pruning.report().images):
                mask = image.kept.flatten()
                wanted[row, : len(mask)] += mask / len(SHARES)
                if share == 1.0:
                    assert torch.equal(kept[row, : len(mask)], mask)
    assert valid.sum(1).tolist() == [20, 6]
    torch.testing.assert_close(targets, wanted)
    means = entered[0].unflatten(0, (-1, 4)).mean(1)  # in the encoder's order, the two images behind each other
    assert {tuple(row.tolist()) for row in features[valid]} == {tuple(row.tolist()) for row in means}


def test_it_learns_resumes_and_is_used_by_its_place(qwen: Zoo, tmp_path: Path) -> None:
    """Images and clips in one batch; killed and resumed is the same, byte for byte; `InEncoder` takes the result."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    logs = train(qwen, whole, save_every=3)
    assert logs[0].loss > logs[-1].loss + 0.05 and logs[-1].agreement > 0.6 > KEEP + 0.1
    assert str(logs[-1]).startswith("loss 0.")
    check_resuming(partial(train, qwen), cut, whole, "scorer.safetensors", steps=8, last=4, save_every=3)
    card = json.loads((whole / "training.json").read_text())
    assert (card["at"], card["teacher"], card["keep"]) == ("encoder:1", "divprune", KEEP)

    scorer = LearnedScorer.load(whole)
    assert scorer.hidden_size == adapter_of(qwen.model).vision_width
    there = InEncoder(get_method("visionselector", scorer=scorer), BLOCK)
    with torch.no_grad(), prune(qwen.model, [there, "divprune"], keep=[KEEP, KEEP / 2]) as pruning:
        qwen.model(**inputs(qwen, [[picture(112, 112, 2)]]))
    assert pruning.report().images[0].kept.sum() == 3  # of 16


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"at": "llm:3"}, "give encoder:K"),
        ({"gate": "embeddings"}, "gate='embeddings' means nothing to a scorer inside the vision encoder"),
        ({"constraint": (1.0, 1.0)}, "constraint"),
        ({"scope": "prompt"}, "scope"),
        ({"keep": 20}, "give a share, such as 0.4"),
        ({"at": ""}, "teacher='divprune' means nothing to a scorer before the language model"),
    ],
)
def test_recipes_that_cannot_be(wrong: dict, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        replace(RECIPE, **wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"teacher": "{broken"}, "is not JSON"),
        ({"teacher": "divprun"}, "divprune"),
        ({"teacher": "fastv"}, "does not prune before the LLM alone"),
        ({"at": "encoder:99"}, "block"),
    ],
)
def test_trainings_that_cannot_be(qwen: Zoo, tmp_path: Path, wrong: dict, says: str) -> None:
    with pytest.raises(FoveateError, match=says):
        train(qwen, tmp_path / "out", replace(RECIPE, **wrong))
    assert not (tmp_path / "out" / "scorer.safetensors").exists()
