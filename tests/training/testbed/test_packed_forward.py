"""Models in training give what transformers gives: the same visual tokens, the same logits for each packed question."""

from __future__ import annotations

import math
from contextlib import closing

import pytest
import torch
import transformers as tf

from foveate.testbed.architectures import MODELS, build, image_processor, tokenizer
from foveate.testbed.procedural import Scene, generate
from foveate.training.testbed.batches import NOT_ASKED, Batch, Batches, collate
from foveate.training.testbed.labels import CLASSES, label
from foveate.training.testbed.packed_forward import Student, student
from foveate.training.testbed.supervision import Inventory, Pointer

SIZES = [(112, 112), (48, 88), (24, 24)]


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest) -> Student:
    return student(request.param, build(request.param, 0).eval(), tokenizer(request.param))


def inputs(learner: Student, scene: Scene, text: str) -> dict[str, torch.Tensor]:
    """The inputs of one prompt, laid out by hand."""
    words = learner.tokenizer
    video = len(scene.frames) > 1
    if isinstance(learner.model, tf.LlavaForConditionalGeneration):
        media = dict(image_processor("llava")(images=list(scene.frames), return_tensors="pt"))
        shown = [words.image_token_id] * 196
    else:
        each = [image_processor("qwen2.5-vl")(images=[frame], return_tensors="pt") for frame in scene.frames]
        patches = [one["pixel_values"].view(-1, 3, 2, 16) for one in each]
        shape = each[0]["image_grid_thw"] * torch.tensor([[max(1, len(each) // 2), 1, 1]])
        if video:  # every two frames share patches
            pairs = [torch.stack([a[:, :, 0], b[:, :, 0]], 2) for a, b in zip(patches[::2], patches[1::2], strict=True)]
            media = {"pixel_values_videos": torch.cat(pairs).flatten(1), "video_grid_thw": shape}
        else:
            media = {"pixel_values": patches[0].flatten(1), "image_grid_thw": shape}
        token = words.video_token_id if video else words.image_token_id
        shown = [words.start_token_id, *[token] * (int(shape.prod()) // 4), words.end_token_id]
    ids = [words.bos_token_id, *shown, *words(text, add_special_tokens=False)["input_ids"]]
    media["input_ids"] = torch.tensor([ids])
    if not isinstance(learner.model, tf.LlavaForConditionalGeneration):
        kinds = (media["input_ids"] == words.image_token_id).long()
        media["mm_token_type_ids"] = kinds + 2 * (media["input_ids"] == words.video_token_id).long()
    return media


def packed_logits(learner: Student, batch: Batch) -> torch.Tensor:
    assert batch.packed is not None
    return learner.answer(learner.see(batch.pixels)[0], batch.packed, batch.grid)[0]


def check(learner: Student, scenes: list[Scene]) -> None:
    """Each question's logits, packed with the others, against those of a prompt of its own."""
    padded = isinstance(learner.model, tf.LlavaForConditionalGeneration)
    batch = collate(scenes, learner.tokenizer, padded)
    with torch.no_grad():
        logits = packed_logits(learner, batch)
        for row, scene in enumerate(scenes):
            for number, question in enumerate(scene.questions[:3]):
                mine = logits[row][batch.packed.numbers[row] == number]
                alone = learner.model(**inputs(learner, scene, f"{question.text} {question.answer}")).logits[0]
                assert torch.allclose(mine, alone[-len(mine) :], atol=1e-4), question


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_packed_questions_are_answered_as_alone(trained: Student, size: tuple[int, int]) -> None:
    check(trained, [generate("train", 0, index, "objects", size) for index in (1, 2)])


def test_clips() -> None:
    learner = student("qwen2.5-vl", build("qwen2.5-vl", 0).eval(), tokenizer("qwen2.5-vl"))
    for index in (0, 1):
        check(learner, [generate("train", 0, index, "clip")])


def test_small_pictures_enter_llava_at_their_places() -> None:
    """Without a canvas a picture is what the upper left of a canvas is to a tower that looks at nothing else."""
    learner = student("llava", build("llava", 0).eval(), tokenizer("llava"))
    pixels = torch.randn(1, 1, 3, 48, 64)
    for layer in learner.model.model.vision_tower.encoder.layers:  # tokens that see only themselves
        torch.nn.init.zeros_(layer.self_attn.out_proj.weight)
    with torch.no_grad():
        small = learner.see(pixels)[0]
        full = learner.see(torch.nn.functional.pad(pixels, (0, 48, 0, 64)))[0].view(1, 14, 14, -1)
    assert torch.allclose(small.view(1, 6, 8, -1), full[:, :6, :8], atol=1e-5)


def test_only_answers_are_learned() -> None:
    words = tokenizer("llava")
    scenes = [generate("train", 0, index, "page") for index in (1, 2)]
    scenes = [scene for scene in scenes if scene.frames[0].size == scenes[0].frames[0].size]
    packed = collate(scenes, words).packed
    assert packed is not None
    for row, scene in enumerate(scenes):
        for number, question in enumerate(scene.questions):
            learned = packed.targets[row][(packed.numbers[row] == number) & (packed.targets[row] != NOT_ASKED)]
            answer = words(question.answer, add_special_tokens=False)["input_ids"]
            assert learned.tolist() == [*answer, words.eos_token_id]
    assert (packed.targets[packed.numbers < 0] == NOT_ASKED).all()


def test_names_tell_where_their_things_are() -> None:
    words = tokenizer("llava")
    scene = generate("train", 0, 3, "objects", (112, 112))
    packed = collate([scene], words).packed
    assert packed is not None
    assert {"relation", "localisation"} <= {question.family for question in scene.questions}
    for number, question in enumerate(scene.questions):
        mine = packed.numbers[0] == number
        named = packed.named[0][mine]
        told = [
            (" ".join(words.convert_ids_to_tokens(packed.ids[0][mine][: end + 1])), named[end].tolist())
            for end in range(len(named))
            if named[end, 0] != NOT_ASKED
        ]
        wanted = dict(zip(question.names, question.boxes[0], strict=False))
        assert len(told) == len(wanted) == {"relation": 2, "localisation": 1}.get(question.family, len(told))
        for text, box in told:
            name = next(name for name in wanted if text.endswith(name))
            assert [4 * side for side in box] == pytest.approx(wanted[name], abs=2)


def test_batches_are_numbered() -> None:
    words = tokenizer("llava")
    one, other = (Batches("train", 3, words, 800) for _ in range(2))
    for number in (4, 2):
        a, b = one.batch(number), other.batch(number)
        assert a.pixels.equal(b.pixels) and a.packed.ids.equal(b.packed.ids) and a.padded == b.padded


@pytest.mark.slow
def test_workers_make_the_same_batches_in_order() -> None:
    batches = Batches("train", 3, tokenizer("llava"), 200)
    with closing(batches.stream(5, True, False, workers=1)) as ahead:
        for number in (5, 6, 7):
            made, own = next(ahead), batches.batch(number)
            assert made.pixels.equal(own.pixels) and made.packed is not None and own.packed is not None
            assert made.packed.targets.equal(own.packed.targets) and made.packed.questions == own.packed.questions


def test_a_pointer_reads_names_alone() -> None:
    pointer = Pointer(16)
    named = torch.full((1, 4, 4), NOT_ASKED)
    loss, right = pointer(torch.randn(1, 4, 16), named)
    assert loss == 0 and math.isnan(right)
    named[0, 2] = torch.tensor([1, 2, 3, 4])
    halfway = torch.randn(1, 4, 16, requires_grad=True)
    loss, right = pointer(halfway, named)
    loss.backward()
    assert halfway.grad is not None and halfway.grad[0].abs().sum(1).nonzero().flatten().tolist() == [2]
    with torch.no_grad():
        pointer.readout.weight.zero_()
        pointer.readout.bias.copy_(torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 5]), 29).flatten())
    assert pointer(halfway, named)[1] == 0.75


def test_an_inventory_names_each_thing_with_its_colour() -> None:
    scene = generate("train", 0, 3, "objects", (112, 112))
    labels = label([scene], 14, 14)
    colours = CLASSES["colour"] - 1
    shown = [(int(t) - 1) * colours + int(c) - 1 for t, c in zip(labels.thing[0], labels.colour[0], strict=True) if t]
    kinds, inventory = sorted(set(shown)), Inventory(8)
    with torch.no_grad():
        inventory.readout.weight.zero_()
        inventory.readout.bias.fill_(-20)
        inventory.readout.bias[kinds[1:]] = 20
    missed, found = inventory(torch.randn(1, 8), labels)
    assert found == pytest.approx(1 - 1 / len(kinds))
    with torch.no_grad():
        inventory.readout.bias[kinds[0]] = 20
    whole, found = inventory(torch.randn(1, 8), labels)
    assert found == 1 and whole < 1e-6 < missed
