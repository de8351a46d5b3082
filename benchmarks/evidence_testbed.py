"""Train and judge the evidence scorers that come with the testbed's models, in minutes on one GPU.

`foveate train evidence` does the same for any model. Here what the language model reads of each question is recorded
first: features of the visual tokens, the text, positions and the answer. Training then runs nothing but the language
model, on the few tokens that are drawn for each question. The shipped scorers saw 420 scenes of each of the seeds 142,
143, 144 and 145; five trainings shared one H100 and 16 cores, each with 20 s of labels and 97 s of answers. As the
schedule follows the clock there, results differ from run to run; with --steps alone they do not, on one machine.
The scorer of testbed-qwen2.5-vl was trained when recordings gave all frames of a clip one place in time; they no longer
do.

`average` tells how much a choice that does not know the question could gain: it puts averages of the evidence over
questions in the place of the learned word, over a bank of questions about other scenes, and over the very questions
that are asked about the scene, which nothing but this test can know.

An answer counts as right where each of its tokens is the likeliest behind those before it, which is when a model that
always takes the likeliest writes it. Evaluation is told with the question and without it; accuracy is the mean over
the families of questions.

Usage: PYTHONPATH=src python benchmarks/evidence_testbed.py record --model testbed-llava --split train --seed 142
--scenes 420 --out train0.pt [--readings], and likewise --split test --seed 77 --per-family 60 --out dev.pt; then
PYTHONPATH=src python benchmarks/evidence_testbed.py train --model testbed-llava --recordings train0.pt --seconds 97
--out scorer.safetensors [--labels boxes|attention|gradient|answers] [--leave reading,counting]
[--question-blind-share 0.3]; then
PYTHONPATH=src python benchmarks/evidence_testbed.py evaluate --model testbed-llava --recordings dev.pt
--scorer scorer.safetensors [--keep 10%,5%] [--pull 0] [--diversity 0]; and
PYTHONPATH=src python benchmarks/evidence_testbed.py average --model testbed-llava --recordings scenes.pt
--bank train0.pt, with scenes.pt from record --split test --seed 77 --scenes 80
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.data.prompts import move_to_model
from foveate.data.samples import Sample
from foveate.evaluation.statistics import bootstrap
from foveate.importance import LearnedScorer
from foveate.importance.evidence_scorer import EvidenceScorer, EvidenceShape
from foveate.models import adapter_of
from foveate.runtime.prompt import locate
from foveate.testbed import generate, load_shipped, samples, shipped_models
from foveate.testbed.oracle import rank_tokens
from foveate.testbed.questions import families_seen
from foveate.testbed.suite import sample
from foveate.training.evidence.labels import largest, read_attention, read_gradient
from foveate.training.evidence.learner import balanced_losses
from foveate.training.evidence.policy import draw, pick
from foveate.training.scorer.data import batch_of, example_of

BATCH, DRAWS, LABEL_STEPS, RATE = 64, 16, 1200, 1e-3
LEAST, MOST = 0.04, 0.125  # shares of the tokens that are kept in training, even in their logarithm
CLIP_EVERY = 5  # scenes of training, for models that read clips
CHUNK = 2048  # prompts in one forward of the language model
READINGS = {"attention": read_attention, "gradient": read_gradient}
POSITIVES = 0.05  # share of the tokens that are evidence by a reading
CHOICES = ("importance alone", "the learned word", "mean over a bank", "mean over what is asked")


class _Stop(Exception):
    """Ends a forward where the language model begins."""


def ask(split: str, seed: int, scenes: int, clips: bool) -> list[Sample]:
    """All questions about the first scenes of a split."""
    made: list[Sample] = []
    for index in range(scenes):
        scene = generate(split, seed, index, "clip" if clips and index % CLIP_EVERY == CLIP_EVERY - 1 else None)
        made += [sample(question, scene.frames, f"{index}", place) for place, question in enumerate(scene.questions)]
    return made


@torch.no_grad()
def record(name: str, asked: Sequence[Sample], readings: bool = False) -> dict[str, Any]:
    """What the language model reads of each question; the encoder sees each scene once.

    With `readings` also what the model itself tells of its evidence, by attention and by gradients.
    """
    model, processor = load_shipped(name)
    adapter, tokenizer, read = adapter_of(model), processor.tokenizer, {}

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        read.update(kwargs)
        raise _Stop

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    scenes: dict[str, list[Sample]] = defaultdict(list)
    for one in asked:
        scenes[one.group].append(one)
    made: dict[str, list[Any]] = {"features": [], "grids": [], "questions": []}
    for of_scene in scenes.values():
        example = example_of(processor, of_scene[0])
        inputs = move_to_model(batch_of([example], tokenizer.pad_token_id or 0)[0], model)
        hook = adapter.text.register_forward_pre_hook(stop, with_kwargs=True)
        with suppress(_Stop):
            model(**inputs, use_cache=False)
        hook.remove()
        (span,) = locate(adapter, inputs["input_ids"], inputs)
        ids = inputs["input_ids"][0, : -len(example.answer)].tolist()
        question, after = encode(of_scene[0].question), int(span.index[-1]) + 1
        start = max(i for i in range(len(ids)) if ids[i : i + len(question)] == question)
        places = read.get("position_ids")
        places = torch.arange(len(ids))[None] if places is None else places[-3:].reshape(-1, places.shape[-1])
        for one in of_scene:  # the same prompt with another question and answer; text counts on from the pictures
            answer = [*encode(one.answers[0]), tokenizer.eos_token_id]
            whole = ids[:start] + encode(one.question) + ids[start + len(question) :] + answer
            behind = places[:, after : after + 1] + torch.arange(len(whole) - after)
            told = {"scene": len(made["features"]), "ids": torch.tensor(whole), "visual": span.index}
            told |= {"positions": torch.cat([places[:, :after], behind], 1), "answer": len(answer)}
            told |= {"evidence": rank_tokens(span.grid, one.boxes), "family": one.family}
            made["questions"].append(told)
        if readings:
            examples = [example_of(processor, one) for one in of_scene]
            for kind, read_labels in READINGS.items():
                values = read_labels(model, examples, tokenizer.pad_token_id or 0)
                for told, row in zip(made["questions"][-len(examples) :], values, strict=True):
                    told[kind] = (row / row.max()).half()
        made["features"].append(read["inputs_embeds"][0, span.index].half())
        made["grids"].append((span.grid.frames, span.grid.rows, span.grid.columns))
    return {"model": name, **made}


class Recordings:
    """Recordings on a device: R questions about S scenes of at most N visual tokens, with texts of at most T ids.

    Attributes:
        features, sizes, coordinates: of scenes, (S, N, d), (S,) and (S, N, 3).
        scene, ids, real, before, texts, answers: of questions: their scene; ids (R, T) without the visual ones and
            which are real; how many ids stand before the visual ones, are there in all, and belong to the answer.
        text_places, visual_places: positions (R, T, D) and (R, N, D), of one or of three dimensions.
        labels: (R, N) bool, which visual tokens show what is asked about.
        attention, gradient: (R, N), what the model tells of that; empty where it was not recorded.
    """

    def __init__(self, name: str, files: Sequence[Path], device: str) -> None:
        features: list[Tensor] = []
        grids: list[tuple[int, int, int]] = []
        rows: list[dict[str, Any]] = []
        for file in files:
            read = torch.load(file, weights_only=True)
            if read["model"] != name:
                raise SystemExit(f"{file} was recorded with {read['model']}, not with {name}.")
            rows += [row | {"scene": row["scene"] + len(features)} for row in read["questions"]]
            features, grids = features + read["features"], grids + read["grids"]
        self.sizes = torch.tensor([len(one) for one in features])
        self.features = torch.zeros(len(features), int(self.sizes.max()), features[0].shape[1], dtype=torch.half)
        self.coordinates = torch.zeros(*self.features.shape[:2], 3, dtype=torch.long)
        for number, (one, grid) in enumerate(zip(features, grids, strict=True)):
            self.features[number, : len(one)] = one
            axes = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
            self.coordinates[number, : len(one)] = torch.stack(axes, -1).flatten(0, 2)
        self.families: list[str] = [row["family"] for row in rows]
        self.scene = torch.tensor([row["scene"] for row in rows])
        self.texts = torch.tensor([len(row["ids"]) - len(row["visual"]) for row in rows])
        self.answers = torch.tensor([row["answer"] for row in rows])
        self.before = torch.tensor([int(row["visual"][0]) for row in rows])
        self.longest = int(self.answers.max())
        count, longest, places = len(rows), int(self.texts.max()), len(rows[0]["positions"])
        self.ids = torch.zeros(count, longest, dtype=torch.long)
        self.text_places = torch.zeros(count, longest, places, dtype=torch.long)
        self.visual_places = torch.zeros(count, self.features.shape[1], places, dtype=torch.short)
        self.labels = torch.zeros(count, self.features.shape[1], dtype=torch.bool)
        read_too = all(kind in row for row in rows for kind in READINGS)
        self.attention, self.gradient = (torch.zeros(self.labels.shape if read_too else 0) for _ in READINGS)
        for number, row in enumerate(rows):
            text = torch.ones(len(row["ids"]), dtype=torch.bool).index_fill(0, row["visual"], False)
            self.ids[number, : self.texts[number]] = row["ids"][text]
            self.text_places[number, : self.texts[number]] = row["positions"].T[text]
            self.visual_places[number, : len(row["visual"])] = row["positions"].T[row["visual"]]
            self.labels[number, row["evidence"]] = True
            for kind in READINGS if read_too else ():
                getattr(self, kind)[number, : len(row["visual"])] = row[kind][: len(row["visual"])]
        self.real = torch.arange(longest)[None] < self.texts[:, None]
        for key, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, key, value.to(device))

    def evidence(self, kind: str, rows: Tensor, valid: Tensor) -> Tensor:
        """Labels of some questions, (B, N) bool: by boxes, or the largest of what the model tells."""
        if kind == "boxes":
            return self.labels[rows][:, : valid.shape[1]]
        if not len(getattr(self, kind)):
            raise SystemExit(f"the recordings have no {kind}; make them with record --readings.")
        return largest(getattr(self, kind)[rows][:, : valid.shape[1]], valid, POSITIVES)

    def shown(self, rows: Tensor, blind: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a scorer reads of some questions; where `blind`, without their text."""
        scene = self.scene[rows]
        # Only on a CPU does the width follow the largest: a GPU would have to be waited for.
        width = self.features.shape[1] if rows.is_cuda else int(self.sizes[scene].max())
        valid = torch.arange(width, device=rows.device) < self.sizes[scene][:, None]
        text = torch.arange(self.ids.shape[1], device=rows.device) < (self.texts - self.answers)[rows][:, None]
        features, coordinates = self.features[scene, :width].float(), self.coordinates[scene, :width]
        return features, valid, coordinates, embeddings[self.ids[rows]], text & ~blind[:, None]


class Frozen:
    """The language model, which answers recorded questions by some of their visual tokens."""

    def __init__(self, name: str, device: str) -> None:
        self.model: Any = load_shipped(name)[0].requires_grad_(False).to(device)
        self.text = adapter_of(self.model).text
        self.embeddings: Tensor = self.model.get_input_embeddings().weight

    @torch.no_grad()
    def judge(self, data: Recordings, rows: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of each answer, and whether it is right, (P,) each, by the `picks` (P, C); -1 is none."""
        parts = zip(rows.split(CHUNK), picks.split(CHUNK), strict=True)
        losses, right = zip(*(self._judge(data, *part) for part in parts), strict=True)
        return torch.cat(losses), torch.cat(right)

    def _judge(self, data: Recordings, rows: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
        place, far = torch.arange(data.ids.shape[1], device=rows.device), 10_000
        real, kept = data.real[rows], picks.clamp_min(0)
        answers = real & (place >= (data.texts - data.answers)[rows][:, None])
        # In the order of the prompt: text, visual tokens, text; what is not there comes first, as padding.
        rank = torch.where(place < data.before[rows][:, None], place, place + 2 * far).masked_fill(~real, -1)
        rank = torch.cat([rank, torch.where(picks >= 0, picks + far, -1)], 1)
        order = rank.argsort(dim=1, stable=True)[:, -int((rank >= 0).sum(1).max()) :]
        line = torch.arange(len(rows), device=rows.device)[:, None]
        visual = data.features[data.scene[rows][:, None], kept].float()
        embeds = torch.cat([self.embeddings[data.ids[rows]], visual], 1)[line, order]
        places = torch.cat([data.text_places[rows], data.visual_places[rows[:, None], kept].long()], 1)[line, order]
        places = places.permute(2, 0, 1)
        wanted = data.ids[rows].masked_fill(~answers, -100)
        wanted = torch.cat([wanted, torch.full_like(picks, -100)], 1)[line, order][:, -data.longest :]
        mask = (rank >= 0).long()[line, order]
        read = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": False}
        read["position_ids"] = places if len(places) > 1 else places[0]
        hidden = self.text(**read).last_hidden_state[:, -data.longest - 1 : -1]
        logits = self.model.get_output_embeddings()(hidden).float()
        losses = nn.functional.cross_entropy(logits.mT, wanted, ignore_index=-100, reduction="none").sum(1)
        asked = wanted != -100
        return losses / asked.sum(1), ((logits.argmax(-1) == wanted) | ~asked).all(1)


def count_of(shares: Tensor | float, valid: Tensor) -> Tensor:
    return (shares * valid.sum(1) + 0.5).long().clamp_min(2)


@torch.no_grad()
def evaluate(frozen: Frozen, scorer: EvidenceScorer, data: Recordings, keep: float, blind: bool) -> dict[str, float]:
    """Percentage of right answers of each family, with what the scorer picks."""
    rows = torch.arange(len(data.scene), device=data.scene.device)
    shown = data.shown(rows, torch.full_like(rows, blind, dtype=torch.bool), frozen.embeddings)
    counts = count_of(keep, shown[1])
    picks = pick(scorer(*shown), shown[0], shown[1], counts, scorer.diversity, int(counts.max()))
    found = defaultdict(list)
    for family, right in zip(data.families, frozen.judge(data, rows, picks)[1].tolist(), strict=True):
        found[family].append(right)
    return {family: 100 * sum(right) / len(right) for family, right in sorted(found.items())}


@torch.no_grad()
def average(frozen: Frozen, scorer: EvidenceScorer, data: Recordings, bank: Recordings, most: int) -> dict[str, Tensor]:
    """Four scores of the tokens of each scene, whatever is asked, (S, N); the bank gives `most` questions."""
    drawn = torch.randperm(len(bank.scene))[:most]
    of_bank = bank.shown(drawn, torch.zeros_like(drawn, dtype=torch.bool), frozen.embeddings)[3:]
    scores = {name: torch.zeros(data.features.shape[:2]) for name in CHOICES}
    for scene in range(len(data.sizes)):
        rows = (data.scene == scene).nonzero()[:, 0]
        one = data.shown(rows[:1], torch.zeros(1, dtype=torch.bool), frozen.embeddings)[:3]
        asked = data.shown(rows, torch.zeros_like(rows, dtype=torch.bool), frozen.embeddings)[3:]
        learned, size = scorer.evidence(*one), one[1].shape[1]
        importance = scorer(*one) - learned
        for name, evidence in zip(
            CHOICES,
            (torch.zeros_like(learned), learned, _average(scorer, one, of_bank), _average(scorer, one, asked)),
            strict=True,
        ):
            scores[name][scene, :size] = (importance + evidence)[0]
    return scores


@torch.no_grad()
def judge_scores(frozen: Frozen, data: Recordings, scores: Tensor, diversity: Tensor, keep: float) -> Tensor:
    """Which questions are right, (R,) bool, by tokens that are picked once for each scene, by scores (S, N)."""
    valid = torch.arange(data.features.shape[1]) < data.sizes[:, None]
    counts = count_of(keep, valid)
    picks = pick(scores, data.features.float(), valid, counts, diversity, int(counts.max()))
    return frozen.judge(data, torch.arange(len(data.scene)), picks[data.scene])[1]


def _average(scorer: EvidenceScorer, scene: Sequence[Tensor], questions: Sequence[Tensor]) -> Tensor:
    """Evidence of a scene, averaged over questions as the logarithm of the mean of exponentials, (1, N)."""
    count = len(questions[0])
    evidence = scorer.evidence(*(one.expand(count, *one.shape[1:]) for one in scene), *questions)
    return evidence.logsumexp(0, keepdim=True) - math.log(count)


def train(frozen: Frozen, scorer: EvidenceScorer, data: Recordings, given: Any) -> int:
    """Learn from labels, then from answers; returns the steps of the second stage."""
    device, out = data.scene.device, given.out
    learned = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    families: dict[str, list[int]] = defaultdict(list)
    for number, family in enumerate(data.families):
        if family not in given.leave.split(","):
            families[family].append(number)
    pools = [torch.tensor(pool) for pool in families.values()]
    if not pools:
        raise SystemExit("nothing is left to learn from; leave fewer families out.")

    def next_batch() -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Questions of families drawn evenly, and what is shown of them."""
        chosen = [pools[k] for k in torch.randint(len(pools), (BATCH,)).tolist()]
        rows = torch.stack([pool[torch.randint(len(pool), ())] for pool in chosen]).to(device)
        blind = torch.rand(BATCH, device=device) < given.question_blind_share
        return rows, data.shown(rows, blind, frozen.embeddings)

    def step(optimizer: torch.optim.Optimizer, loss: Tensor, done: float) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        rate = RATE * min(1.0, 30 * done) * (0.03 + 0.97 * (1 + math.cos(math.pi * min(1.0, done))) / 2)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    began = time.time()
    if given.labels != "answers":
        optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.01)
        for number in range(given.label_steps):
            rows, shown = next_batch()
            labels = data.evidence(given.labels, rows, shown[1])
            each = balanced_losses(scorer.evidence(*shown), labels, shown[1], torch.arange(BATCH, device=device), BATCH)
            step(optimizer, each.mean(), number / given.label_steps)
            if number % 300 == 0:
                print(f"labels {number}: loss {each.mean().item():.3f}, {time.time() - began:.0f} s", flush=True)
        with torch.no_grad():  # labels leave scores so far apart that draws hardly differ
            scorer.out.weight *= 0.5
            scorer.out.bias.zero_()
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0, betas=(0.9, 0.99))
    began, number = time.time(), 0
    while given.steps and (done := max(number / given.steps, (time.time() - began) / given.seconds)) < 1:
        rows, shown = next_batch()
        scores, (features, valid) = scorer(*shown), shown[:2]
        shares = torch.exp(math.log(LEAST) + torch.rand(BATCH, device=device) * math.log(MOST / LEAST))
        many = (scores, features, valid, count_of(shares, valid), rows)
        scores, features, valid, counts, rows = (one.repeat_interleave(DRAWS, 0) for one in many)
        drawn = draw(scores, features, valid, counts, scorer.diversity, int(MOST * valid.shape[1] + 1))
        losses, right = frozen.judge(data, rows, drawn.picks)
        rewards = (0.5 * right.float() - losses.clamp_max(3)).view(BATCH, DRAWS)
        better = (rewards - rewards.mean(1, keepdim=True)) * DRAWS / (DRAWS - 1)  # than the mean of the others
        better = better / (rewards.std(1).mean() + 1e-3)
        step(optimizer, -(better.flatten() * drawn.log_probability / counts**0.5).mean(), done)
        if number % 200 == 0:
            told = f"loss {losses.mean().item():.3f}, right {100 * right.float().mean().item():.1f} %"
            print(f"answers {number}: {told}, {time.time() - began:.0f} s", flush=True)
        number += 1
    scorer.save(out)
    return number


def begin(name: str, frozen: Frozen, device: str) -> EvidenceScorer:
    """A scorer that knows no more than the importance in the model's folder, which stays as it is."""
    base = LearnedScorer.load(shipped_models()[name])
    shape = EvidenceShape(frozen.embeddings.shape[1], base=base.q_weight.shape[0])
    scorer = EvidenceScorer(shape, base).to(device)
    scorer.base.requires_grad_(False)
    return scorer


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = ("record", "train", "evaluate", "average")
    makes, trains, judges, averages = (commands.add_parser(name) for name in names)
    for one in (makes, trains, judges, averages):
        one.add_argument("--model", default="testbed-llava")
    makes.add_argument("--split", default="train", choices=("train", "validation", "test"))
    makes.add_argument("--seed", type=int, default=142)
    number = makes.add_mutually_exclusive_group(required=True)
    number.add_argument("--scenes", type=int, help="all questions about so many scenes, every fifth a clip")
    number.add_argument("--per-family", type=int, help="so many questions of each family, as the evaluation asks them")
    makes.add_argument("--readings", action="store_true", help="record the model's attention and gradients, too")
    for one in (makes, trains):
        one.add_argument("--out", type=Path, required=True)
    for one in (trains, judges, averages):
        one.add_argument("--recordings", type=Path, nargs="+", required=True)
    for one in (trains, judges):
        one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    trains.add_argument("--labels", default="boxes", choices=("boxes", *READINGS, "answers"))
    trains.add_argument("--label-steps", type=int, default=LABEL_STEPS)
    trains.add_argument("--steps", type=int, default=20_000, help="of the second stage, at most; 0 for none")
    trains.add_argument("--seconds", type=float, default=math.inf, help="of the second stage, at most")
    trains.add_argument("--leave", default="", help="families that are not learned, with commas between")
    trains.add_argument("--question-blind-share", type=float, default=0.3)
    trains.add_argument("--seed", type=int, default=0)
    for one in (judges, averages):
        one.add_argument("--scorer", type=Path, help="of the model's own folder, if not given")
        one.add_argument("--keep", default="10%,5%")
        one.add_argument("--pull", type=float, help="weight of the importance, in the place of the learned one")
        one.add_argument("--diversity", type=float, help="likewise, of the similarity")
    averages.add_argument("--bank", type=Path, required=True, help="recordings whose questions are averaged over")
    averages.add_argument("--bank-size", type=int, default=64)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.command == "record":
        clips = "clips" in (seen := families_seen(given.model == "testbed-qwen2.5-vl"))
        asked = samples(given.split, given.seed, given.per_family, seen) if given.per_family else None
        made = record(given.model, asked or ask(given.split, given.seed, given.scenes, clips), given.readings)
        torch.save(made, given.out)
        print(f"{len(made['questions'])} questions about {len(made['features'])} scenes", flush=True)
        return
    torch.manual_seed(getattr(given, "seed", 0))
    device = getattr(given, "device", "cpu")
    frozen = Frozen(given.model, device)
    data = Recordings(given.model, given.recordings, device)
    if given.command == "train":
        steps = train(frozen, begin(given.model, frozen, device), data, given)
        print(f"{steps} steps of answers: {given.out}", flush=True)
        return
    scorer = EvidenceScorer.load(given.scorer or shipped_models()[given.model]).to(device)
    with torch.no_grad():
        for parameter, value in ((scorer.pull, given.pull), (scorer.spread, given.diversity)):
            parameter.fill_(parameter if value is None else value)
    shares = {share.strip(): float(share.strip().rstrip("%")) / 100 for share in given.keep.split(",")}
    if given.command == "average":
        scores = average(frozen, scorer, data, Recordings(given.model, [given.bank], device), given.bank_size)
        for share, keep in shares.items():
            rights = [judge_scores(frozen, data, one, scorer.diversity, keep) for one in scores.values()]
            drawn = bootstrap(
                torch.stack(rights).double().numpy(), [str(scene) for scene in data.scene.tolist()], data.families
            )
            for run, name in enumerate(scores):
                minus = drawn.difference(run, 0)
                told = f"{100 * minus.value:+.1f} [{100 * minus.low:+.1f}, {100 * minus.high:+.1f}]"
                reading = 100 * drawn.score(run, "reading").value if "reading" in drawn.columns else math.nan
                whole = 100 * drawn.score(run).value
                print(f"{share}, {name}: {whole:.1f}, {told} to {CHOICES[0]}; reading {reading:.1f}", flush=True)
        return
    for blind in (False, True):
        for share, keep in shares.items():
            found = evaluate(frozen, scorer, data, keep, blind)
            each = ", ".join(f"{family} {value:.1f}" for family, value in found.items())
            how = "without the question" if blind else "with the question"
            print(f"{how}, {share}: {sum(found.values()) / len(found):.1f} ({each})", flush=True)


if __name__ == "__main__":
    main()
