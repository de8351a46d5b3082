"""Training evidence scorers: it sees what pruning sees, resumes exactly, leaves the model alone, and learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import foveate
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from foveate.methods import get_method
from foveate.models import adapter_of
from foveate.runtime.planner import facts_of
from foveate.training import EvidenceExample, EvidenceRecipe, TrainingError, train_evidence
from foveate.training.evidence import frozen as frozen_module
from foveate.training.evidence.frozen import Frozen, ask
from foveate.training.evidence.labels import PictureBoxes
from foveate.training.scorer.data import batch_of, judge_answers
from foveate.training.scorer.gates import apply_gate
from tiny_models import Zoo, inputs, picture
from training.helpers import check_resuming, unchanged

RECIPE = EvidenceRecipe(
    labels="boxes", label_steps=3, answer_steps=3, batch=2, draws=3, shares=(0.2, 0.4), width=16, heads=2
)


def example(zoo: Zoo, seed: int, pictures: int = 1) -> EvidenceExample:
    boxes = tuple(PictureBoxes((((0, 0, 30, 30),),), (112, 112), (0, 0, 112, 112)) for _ in range(pictures))
    shown = [picture(112, 112, seed + 10 * number) for number in range(pictures)]
    return EvidenceExample(inputs(zoo, [shown]), torch.tensor([40 + seed, 2]), boxes)


def train(zoo: Zoo, out: Path, recipe: EvidenceRecipe = RECIPE, **options) -> EvidenceScorer:
    return train_evidence(
        zoo.model, lambda seed: example(zoo, seed), range(8), recipe, out, **{"save_every": 2, **options}
    )


@pytest.fixture(scope="module")
def whole(llava: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three steps by boxes and three by answers that nothing interrupted."""
    out = tmp_path_factory.mktemp("training") / "whole"
    with unchanged(llava.model):
        train(llava, out)
    return out


@pytest.mark.parametrize(("last", "save_every"), [pytest.param(2, 2, marks=pytest.mark.slow), (3, 3)])
def test_killed_and_resumed_equals_uninterrupted(
    llava: Zoo, whole: Path, tmp_path: Path, last: int, save_every: int
) -> None:
    """Within the first stage, and exactly between the two."""
    check_resuming(partial(train, llava), tmp_path, whole, "evidence.safetensors", 6, last, save_every)


def test_what_the_folder_holds_prunes(llava: Zoo, whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["stage"]) for line in lines] == [(i, "labels") for i in range(3)] + [
        (i, "answers") for i in range(3, 6)
    ]
    card = json.loads((whole / "training.json").read_text())
    assert (card["labels"], card["samples"], card["shares"]) == ("boxes", 8, [0.2, 0.4])
    scorer = EvidenceScorer.load(whole)
    assert scorer.out.weight.abs().max() > 1e-4
    with torch.no_grad(), foveate.prune(llava.model, "evidence", keep=0.25, scorer=str(whole)) as pruning:
        llava.model(**inputs(llava, [[picture(112, 112, 0)]]))
    assert pruning.report().images[0].tokens == 4
    with pytest.raises(TrainingError, match=r"holds a training with draws 3, not 4"):
        train(llava, whole, replace(RECIPE, draws=4))


def test_training_sees_what_pruning_sees_and_judges_what_it_leaves(zoo: Zoo) -> None:
    """Of prompts with one and two images, on every family; the oracle hides tokens from all attention."""
    each = [example(zoo, 1), example(zoo, 2, pictures=2)]
    adapter = adapter_of(zoo.model)
    scorer = EvidenceScorer(EvidenceShape(facts_of(adapter).hidden_size, 16, 1, 2))
    torch.nn.init.normal_(scorer.out.weight)
    method = get_method("evidence", scorer=scorer).bind(facts_of(adapter))
    with ask(zoo.model, each, 0) as frozen:
        tokens = frozen.shown.tokens
        keep = method.select(tokens, (tokens.valid.sum(1) * 0.25).long()).keep
        losses, right = frozen.judge(keep)
        everything = frozen.judge(tokens.valid)[0]
    assert frozen.shown.prompts.tolist() == [0, 1, 1]
    kept = []
    for one in each:
        with torch.no_grad(), foveate.prune(zoo.model, method, keep=0.25) as pruning:
            zoo.model(**one.inputs)
        kept += [image.kept.flatten() for image in pruning.report().images]
    assert all(torch.equal(keep[row, : len(one)], one) for row, one in enumerate(kept))

    for number, one in enumerate(each):
        given, labels = batch_of([one], 0)
        places = (given["input_ids"][0] == zoo.visual_ids[0]).nonzero()[:, 0]
        hidden = torch.zeros(given["input_ids"].shape)
        rows = (frozen.shown.prompts == number).nonzero()[:, 0].tolist()
        hidden[0, places] = torch.where(torch.cat([kept[row] for row in rows]), 0.0, -1e9)
        hook = adapter.text.register_forward_pre_hook(
            lambda module, args, kwargs, hidden=hidden: (args, apply_gate("attention", adapter, kwargs, hidden)),
            with_kwargs=True,
        )
        try:
            with torch.no_grad():
                wanted, accepted = judge_answers(zoo.model, given, labels)
        finally:
            hook.remove()
        with torch.no_grad():
            unpruned = judge_answers(zoo.model, given, labels)[0]
        torch.testing.assert_close(losses[number], wanted[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(everything[number], unpruned[0], rtol=1e-3, atol=1e-3)
        assert right[number] == accepted[0]


def test_the_encoder_runs_once_for_all_draws(llava: Zoo) -> None:
    calls = []
    layer = adapter_of(llava.model).vision_layers()[0]
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    attention = layer.self_attn.register_forward_hook(lambda *_: calls.append(2))
    try:
        with ask(llava.model, [example(llava, 1)], 0) as frozen:
            for _ in range(3):
                frozen.judge(frozen.shown.tokens.valid)
    finally:
        hook.remove()
        attention.remove()
    assert calls.count(2) == 1


def test_a_short_question_behind_its_picture_beside_a_long_answer(llava: Zoo) -> None:
    """The last tokens of the batch then lie among pictures, whose logits pruning does not give."""
    short = example(llava, 1)
    long = replace(example(llava, 2), answer=torch.arange(40, 75))
    keep = torch.zeros(2, 64, dtype=torch.bool)
    keep[:, 3:60:7] = True
    with ask(llava.model, [short, long], 0) as frozen:
        together = frozen.judge(keep[:, : frozen.shown.tokens.valid.shape[1]])
    for number, one in enumerate((short, long)):
        with ask(llava.model, [one], 0) as frozen:
            alone = frozen.judge(keep[:1, : frozen.shown.tokens.valid.shape[1]])
        torch.testing.assert_close(together[0][number], alone[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("labels", ["answers", "attention", "gradient"])
def test_labels_without_boxes(llava: Zoo, tmp_path: Path, labels: str) -> None:
    logs = []
    recipe = replace(RECIPE, labels=labels, label_steps=1, answer_steps=1)
    train_evidence(
        llava.model,
        lambda seed: replace(example(llava, seed), pictures=()),
        range(8),
        recipe,
        tmp_path,
        micro_batch=4,
        on_step=logs.append,
    )
    stages = [log.stage for log in logs]
    assert stages == (["answers"] if labels == "answers" else ["labels", "answers"])
    assert all(math.isfinite(log.loss) for log in logs)


def test_what_cannot_be_learned_from(llava: Zoo, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to learn from"):
        train_evidence(llava.model, lambda sample: sample, [], RECIPE, tmp_path)
    with pytest.raises(TrainingError, match="a question has no boxes"):
        train_evidence(llava.model, lambda n: replace(example(llava, n), pictures=()), range(8), RECIPE, tmp_path)
    for wrong in ({"labels": "mouse"}, {"draws": 1}, {"shares": (0.2, 0.1)}, {"blind": 2.0}, {"batch": 0}):
        with pytest.raises(TrainingError):
            replace(RECIPE, **wrong)
    with pytest.raises(TrainingError, match="at least one step"):
        EvidenceRecipe(labels="answers", answer_steps=0)


def test_each_stage_has_its_own_warm_up_and_cosine() -> None:
    recipe = EvidenceRecipe(labels="boxes", label_steps=300, answer_steps=600)
    rates = [recipe.rate(step) for step in range(900)]
    assert abs(max(rates[:300]) / 1e-3 - 1) < 0.02 and abs(max(rates[300:]) / 1e-3 - 1) < 0.02
    assert rates[299] < 3.1e-5 and rates[899] < 3.1e-5 and rates[0] == pytest.approx(1e-4)
    drawn = [one for step in range(40) for one in recipe.draw(step)]
    assert abs(sum(one.blind for one in drawn) / len(drawn) - 0.3) < 0.04
    assert 0.04 <= min(one.share for one in drawn) < 0.042 and 0.12 < max(one.share for one in drawn) <= 0.125
    assert len({one.seed for one in drawn}) == len(drawn)


def test_tokens_that_show_the_answer_are_drawn_more_often(llava: Zoo, tmp_path: Path) -> None:
    """The answers of a frozen model stand in for themselves: one token is needed, by a rule that the test knows."""
    samples = [0]

    def judge(model, inputs, labels, all_logits=False):
        kept = judged[-1][:, 5]
        return torch.where(kept, 0.1, 2.0), kept

    judged: list[torch.Tensor] = []
    own = Frozen.judge

    def remember(self, keep):
        judged.append(keep)
        return own(self, keep)

    recipe = replace(RECIPE, labels="answers", answer_steps=16, batch=1, draws=16, learning_rate=3e-2, blind=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_module, "judge_answers", judge)
        patch.setattr(Frozen, "judge", remember)
        logs = []
        train_evidence(llava.model, lambda _: example(llava, 0), samples, recipe, tmp_path, on_step=logs.append)
    first, last = (sum(log.right for log in part) / 3 for part in (logs[:3], logs[-3:]))
    assert first < 0.6 and last > 0.9
