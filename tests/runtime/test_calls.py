"""Calls of one pruned model know nothing of each other: threads, forwards one after the other, copies, reports."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime.compat import cache_of_output
from tiny_models import Zoo

from .helpers import cached, gap, generate, logits, pair, single

TEXTS = ["what is in the picture?", "a red square on a blue", "a small green circle", "what"]
METHODS = ["divprune", "fastv", "pyramiddrop", "restore", "visipruner", "sparsevlm"]


@pytest.fixture
def nervous() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What the jobs return, run at once, each in a thread; an exception is raised here."""
    results: list[Any] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.qwen3_vl], ids=lambda make: make.__name__)
def test_threads_answer_as_one_after_the_other(make: Any, method: str, nervous: None) -> None:
    z = make()
    prompts = [zoo_module.inputs(z, [[zoo_module.picture(56 + 28 * i, 56, i)]], [t]) for i, t in enumerate(TEXTS)]
    with foveate.prune(z.model, method, keep=0.25):
        alone = [generate(z, prompt).sequences for prompt in prompts]
        together = in_threads([lambda prompt=prompt: generate(z, prompt).sequences for prompt in prompts])
    assert all(map(torch.equal, alone, together))


def test_looking_into_a_layer_and_experts_are_of_one_thread(nervous: None) -> None:
    z = zoo_module.qwen3_vl_moe()
    prompts = [zoo_module.inputs(z, [[zoo_module.picture(56 + 28 * i, 56, i)]], [t]) for i, t in enumerate(TEXTS)]
    with foveate.prune(z.model, "fastmmoe", keep=0.5):
        alone = [generate(z, prompt).sequences for prompt in prompts]
        together = in_threads([lambda prompt=prompt: generate(z, prompt).sequences for prompt in prompts])
    assert all(map(torch.equal, alone, together))


def test_a_report_is_of_the_thread_that_asks(llava: Zoo) -> None:
    one, two = single(llava), pair(llava)
    with foveate.prune(llava.model, "divprune", keep=0.25) as pruning:

        def reported(inputs: Any) -> int:
            logits(llava, inputs)
            return len(pruning.report().images)

        assert in_threads([lambda: reported(one), lambda: reported(two)]) == [1, 2]
        assert len(pruning.report().images) in (1, 2)  # of a thread, where this one had no prefill itself
        logits(llava, one)
        in_threads([lambda: logits(llava, two)])
        assert len(pruning.report().images) == 1


@pytest.mark.parametrize("method", ["idpruner", "cdpruner", "fastv", "sparsevlm", "visipruner", "nuwa", "vscan"])
@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.qwen2_5_vl], ids=lambda make: make.__name__)
def test_a_forward_does_not_depend_on_the_one_before(make: Any, method: str) -> None:
    """Scoring answers: the same prompt, or another picture's, with one token more is a prompt of its own."""
    z = make()
    first, other = (zoo_module.inputs(z, [[zoo_module.picture(56, 84, seed)]], [TEXTS[0]]) for seed in (0, 9))

    def longer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        more = {"input_ids": 17, "attention_mask": 1, "mm_token_type_ids": 0}
        grown = {key: torch.nn.functional.pad(inputs[key], (0, 1), value=more[key]) for key in more if key in inputs}
        return {**inputs, **grown}

    for second in (longer(first), longer(other)):
        with foveate.prune(z.model, method, keep=0.25):
            fresh = logits(z, second)
        with foveate.prune(z.model, method, keep=0.25):
            logits(z, first)
            assert torch.equal(logits(z, second), fresh)


def test_pruning_begins_at_once_and_ends_when_asked(llava: Zoo) -> None:
    inputs = single(llava)
    plain = logits(llava, inputs)
    pruning = foveate.prune(llava.model, "divprune", keep=0.25)
    assert pruning.attached and logits(llava, inputs).shape[1] < plain.shape[1]
    assert "divprune keeps 0.25 before the LLM" in repr(pruning) and "attached to Llava" in repr(pruning)
    with pruning as same:
        assert same is pruning
    assert not pruning.attached and "detached" in repr(pruning) and torch.equal(logits(llava, inputs), plain)
    pruning.detach()
    assert foveate.attach is foveate.prune


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-VL-7B-Instruct", None])
def test_what_is_no_model_is_refused_at_once(model: Any) -> None:
    with pytest.raises(foveate.ModelError, match="has no foveate adapter"):
        foveate.prune(model, "divprune", keep=0.1)


def test_copies_of_a_pruned_model_are_refused(zoo: Zoo) -> None:
    zoo = getattr(zoo_module, zoo.name).__wrapped__()  # anew: a model that gave hidden states once cannot be pickled
    language_model = zoo.model.model.language_model
    with foveate.prune(zoo.model, ["divprune", "fastv"], keep=[0.5, 0.25]):
        for part in (zoo.model, language_model, language_model.layers[1]):
            for made in (copy.deepcopy, pickle.dumps):
                with pytest.raises(foveate.RuntimeStateError, match="detach pruning before you copy"):
                    made(part)
    copied = copy.deepcopy(zoo.model)
    inputs = single(zoo)
    with torch.no_grad():
        assert torch.equal(copied(**inputs).logits, logits(zoo, inputs))


def test_what_was_compiled_before_is_pruned_too(llava: Zoo) -> None:
    """torch.compile does not look at hooks again; here it has compiled the layer whose input is to be shortened."""
    inputs, layer = single(llava), llava.model.model.language_model.layers[2]
    plain = logits(llava, inputs)
    with foveate.prune(llava.model, "fastv", keep=0.4):
        pruned = logits(llava, inputs)
    layer.compile(backend="eager")
    try:
        assert torch.allclose(logits(llava, inputs), plain)
        with foveate.prune(llava.model, "fastv", keep=0.4):
            assert torch.allclose(logits(llava, inputs), pruned, atol=1e-5)
        assert torch.allclose(logits(llava, inputs), plain)
    finally:
        layer._compiled_call_impl = None
        torch._dynamo.reset()


def saved(cache: Any) -> Any:
    """Written to a file and read again."""
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [saved, lambda cache: pickle.loads(pickle.dumps(cache)), copy.deepcopy])
@pytest.mark.parametrize("method", ["divprune", "fastv", "restore"])
def test_a_copied_cache_goes_on_as_the_cache_does(llava: Zoo, method: str, copied: Any) -> None:
    more = {"input_ids": torch.tensor([[17]])}
    with foveate.prune(llava.model, method, keep=0.25), torch.no_grad():
        cache = cache_of_output(llava.model(**single(llava), use_cache=True))
        twin = copied(cache)
        assert torch.equal(logits(llava, more, **cached(cache)), logits(llava, more, **cached(twin)))
        kept = copied(twin)
    with pytest.raises(foveate.RuntimeStateError, match="pruned by foveate"):
        logits(llava, more, **cached(kept))


def test_a_cache_that_another_layer_pruned_is_refused(llava: Zoo) -> None:
    with foveate.prune(llava.model, "fastv", keep=0.25), torch.no_grad():
        cache = cache_of_output(llava.model(**single(llava), use_cache=True))
    with (
        foveate.prune(llava.model, "divprune", keep=0.25),
        pytest.raises(foveate.RuntimeStateError, match="pruned at layer 2"),
    ):
        logits(llava, {"input_ids": torch.tensor([[17]])}, **cached(cache))


def test_a_failed_forward_leaves_nothing_behind(llava: Zoo) -> None:
    inputs = single(llava)

    def fail(module: Any, args: Any) -> None:
        raise KeyError

    for method in ("divprune", "fastv"):
        with foveate.prune(llava.model, method, keep=0.25):
            right = generate(llava, inputs)
            for module in (llava.model.model.vision_tower, llava.model.model.language_model.layers[3]):
                handle = module.register_forward_pre_hook(fail)
                with pytest.raises(KeyError):
                    logits(llava, inputs)
                handle.remove()
                assert gap(generate(llava, inputs), right) == 0


@pytest.mark.parametrize("method", ["restore", "divprune", "avgpool"])
def test_rows_of_a_batch_do_not_touch_each_other(zoo: Zoo, method: str) -> None:
    """A row that loses nothing, beside one that does: one token is all that can be kept of a picture of one."""
    if zoo.name.startswith(("llava", "internvl")):
        pytest.skip("all pictures have the same number of tokens")
    if method == "restore" and zoo.name.startswith("qwen3"):
        pytest.skip("refused on DeepStack")
    small, large = zoo_module.picture(28, 28, 1), zoo_module.picture(112, 112, 2)
    rows = [([small], TEXTS[0]), ([large], TEXTS[1])]
    both = zoo_module.inputs(zoo, [images for images, _ in rows], [text for _, text in rows])
    with foveate.prune(zoo.model, method, keep=0.3):
        together = generate(zoo, both)
        for row, (images, text) in enumerate(rows):
            alone = generate(zoo, zoo_module.inputs(zoo, [images], [text]))
            for a, b in zip(together.logits, alone.logits, strict=True):
                assert float((a[row] - b[0]).abs().max()) < 2e-5


# -- attention masks of one's own, packed prompts


def hand_shortened(z: Zoo, inputs: Any, mask: Tensor, kept: Tensor) -> Tensor:
    """Logits of the model on hand-shortened embeddings, with the rows and columns of what is kept."""
    found: dict[str, Any] = {}
    text = z.model.model.language_model
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    logits(z, inputs, use_cache=False)
    handle.remove()
    places = torch.isin(inputs["input_ids"][0], torch.tensor(z.visual_ids)).nonzero()[:, 0]
    stay = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    stay[places[~kept]] = False
    index = stay.nonzero()[:, 0]
    given = {"inputs_embeds": found["inputs_embeds"][:, index], "position_ids": index[None]}
    return logits(z, {**given, "attention_mask": mask[:, :, index][..., index]}, use_cache=False)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("blind", ["both ways", "from a token on", "the first token"])
def test_masks_for_pairs_keep_rows_and_columns(llava: Zoo, blind: str, kind: str) -> None:
    inputs = single(llava)
    length = inputs["input_ids"].shape[1]
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(llava.visual_ids)).nonzero()[:, 0]
    mask = torch.ones(length, length).tril().bool()
    if blind == "both ways":
        mask[visual[0] : visual[-1] + 1, visual[0] : visual[-1] + 1] = True
    elif blind == "from a token on":
        mask[visual[-1] + 1, : visual[-1]] = False
    else:
        mask[-3:, 0] = False
    mask = mask[None, None]
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with foveate.prune(llava.model, "stride", keep=0.25) as pruning:
        found = logits(llava, {**inputs, "attention_mask": mask}, use_cache=False)
        kept = pruning.report().images[0].kept
    assert torch.allclose(found, hand_shortened(llava, inputs, mask, kept), atol=2e-5)
    inside = AtLayer(foveate.get_method("stride"), 0)
    with foveate.prune(llava.model, AtLayer(foveate.get_method("stride"), 1), keep=0.25):
        later = logits(llava, {**inputs, "attention_mask": mask}, use_cache=False)
    assert later.shape == found.shape and inside.layer == 0


def test_a_mask_that_tells_nothing_of_the_cache_is_refused(llava: Zoo) -> None:
    inputs = single(llava)
    length = inputs["input_ids"].shape[1]
    for wrong in (torch.ones(1, 1, 3, length, dtype=torch.bool), torch.ones(1, 1, length, 3, dtype=torch.bool)):
        with (
            foveate.prune(llava.model, "stride", keep=0.25),
            pytest.raises(foveate.RuntimeStateError, match="a row for each"),
        ):
            logits(llava, {**inputs, "attention_mask": wrong}, use_cache=False)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_packed_prompts_are_refused(llava: Zoo, method: str) -> None:
    inputs = single(llava)
    ids = torch.cat([inputs["input_ids"]] * 2, 1)
    positions = torch.arange(inputs["input_ids"].shape[1]).repeat(2)[None]
    packed = {"input_ids": ids, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1), "position_ids": positions}
    with foveate.prune(llava.model, method, keep=0.25):
        with pytest.raises(foveate.RuntimeStateError, match="packed into one row"):
            logits(llava, packed, use_cache=False)
        text = torch.tensor([[17, 18, 19, 20]])
        packed = {"input_ids": text, "position_ids": torch.tensor([[0, 1, 0, 1]])}
        found = logits(llava, packed, use_cache=False)
    assert torch.equal(found, logits(llava, packed, use_cache=False))


# -- logits by place


def right_padded(both: dict[str, Tensor]) -> dict[str, Tensor]:
    both = dict(both)
    shift = [int((row == 0).sum()) for row in both["attention_mask"]]
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in both:
            both[key] = torch.stack([row.roll(-n) for row, n in zip(both[key], shift, strict=True)])
    return both


@pytest.mark.parametrize("method", ["divprune", "fastv", "avgpool"])
def test_logits_to_keep_gives_the_tokens_that_are_asked_for(zoo: Zoo, method: str) -> None:
    inputs = single(zoo)
    length = inputs["input_ids"].shape[1]
    with foveate.prune(zoo.model, method, keep=0.4):
        whole = logits(zoo, inputs)
        assert torch.allclose(logits(zoo, inputs, logits_to_keep=3), whole[:, -3:], atol=1e-6)
        places = torch.tensor([length - 1, length - 4, 0])
        found = logits(zoo, inputs, logits_to_keep=places)
        assert torch.allclose(found, whole[:, [-1, -4, 0]], atol=1e-6)
        assert places.tolist() == [length - 1, length - 4, 0]  # the caller's tensor is left alone
        for wrong in (length - 1, torch.arange(length)):
            with pytest.raises(foveate.RuntimeStateError, match="logits of visual tokens"):
                logits(zoo, inputs, logits_to_keep=wrong)


@pytest.mark.parametrize("make", [tiny_families.llava_onevision, tiny_families.deepseek_vl])
def test_logits_to_keep_that_the_language_model_is_told_of_and_ignores(make: Any) -> None:
    """One is handed the places, the other a 0 in their stead; the model around it takes the tokens in both."""
    z = make()
    inputs = single(z)
    places = torch.tensor([-1, -3]) + inputs["input_ids"].shape[1]
    with foveate.prune(z.model, "divprune", keep=0.4):
        whole = logits(z, inputs)
        assert torch.allclose(logits(z, inputs, logits_to_keep=places), whole[:, [-1, -3]], atol=1e-6)


def test_logits_to_keep_of_padded_batches(llava: Zoo) -> None:
    pictures = [[zoo_module.picture(84, 112, 0)], [zoo_module.picture(56, 168, 3)]]
    left = zoo_module.inputs(llava, pictures, [TEXTS[0], "what is"])
    right = right_padded(left)
    ends = right["attention_mask"].sum(1) - 1
    assert ends[0] != ends[1]
    with foveate.prune(llava.model, "divprune", keep=0.4):
        whole = logits(llava, left)
        assert torch.allclose(logits(llava, left, logits_to_keep=2), whole[:, -2:], atol=1e-6)
        with pytest.raises(foveate.RuntimeStateError, match=r"padding on the right"):
            logits(llava, right, logits_to_keep=int(ends.max() - ends.min()) + 1)
        with pytest.raises(foveate.RuntimeStateError, match="different places"):
            logits(llava, right, logits_to_keep=ends.min()[None])
        alone = logits(llava, right, logits_to_keep=ends.max()[None])[ends.argmax(), -1]
        assert torch.allclose(alone, whole[ends.argmax(), -1], atol=1e-6)


# -- gradients


def gradients(z: Zoo, method: str, checkpointing: dict[str, Any] | None, **fields: Any) -> dict[str, Tensor]:
    """Of the last token's logits, with gradient checkpointing or without."""
    model = copy.deepcopy(z.model).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
    with foveate.prune(model, method, keep=0.25, **fields):
        model(**pair(z), use_cache=False).logits[:, -1].square().sum().backward()
    held = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert not any(type(function).__name__ == "Checkpointing" for function in held)
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


GRADIENTS = [("divprune", {}), ("avgpool", {}), ("fastv", {}), ("pyramiddrop", {}), ("d2pruner", {"debias": False})]
GRADIENTS += [("visipruner", {}), ("restore", {}), ("nuwa", {}), ("sparsevlm", {"recycle": True})]


@pytest.mark.parametrize(("method", "fields"), GRADIENTS, ids=str)
@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.qwen3_vl_moe], ids=lambda make: make.__name__)
def test_gradient_checkpointing_gives_the_same_gradients(make: Any, method: str, fields: dict[str, Any]) -> None:
    z = make()
    try:
        plain = gradients(z, method, None, **fields)
    except foveate.ModelError:
        pytest.skip("refused on this family")
    found = gradients(z, method, {"use_reentrant": False}, **fields)
    assert plain.keys() == found.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, found[name], atol=1e-4), name


def test_patches_that_were_left_out_stay_out_when_the_encoder_runs_again(qwen: Zoo) -> None:
    plain, found = (gradients(qwen, "pixelprune", kind, tolerance=0.3) for kind in (None, {"use_reentrant": False}))
    assert plain.keys() == found.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, found[name], atol=1e-4), name


def test_layers_that_run_again_by_other_means_are_refused(llava: Zoo) -> None:
    from torch.utils.checkpoint import checkpoint

    model = copy.deepcopy(llava.model).train()
    layer = model.model.language_model.layers[3]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    with foveate.prune(model, "restore", keep=0.25):
        loss = model(**single(llava), use_cache=False).logits[:, -1].square().sum()
        with pytest.raises(foveate.RuntimeStateError, match="gradient_checkpointing_enable"):
            loss.backward()


@pytest.mark.parametrize("method", ["fastv", "restore"])
def test_backward_behind_the_block_is_refused_where_layers_run_again(llava: Zoo, method: str) -> None:
    model = copy.deepcopy(llava.model).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with foveate.prune(model, method, keep=0.25):
        loss = model(**single(llava), use_cache=False).logits[:, -1].square().sum()
    with pytest.raises(foveate.RuntimeStateError, match="call backward before you detach"):
        loss.backward()


# -- calls within calls, calls that are cut short


@pytest.mark.parametrize("place", ["language_model", "layer", "vision"])
@pytest.mark.parametrize("method", ["divprune", "fastv", "sparsevlm"])
def test_a_forward_within_a_forward(llava: Zoo, method: str, place: str) -> None:
    """A hook of the user's calls the model with another picture in the middle of a forward."""
    inputs, other = single(llava), zoo_module.inputs(llava, [[zoo_module.picture(56, 84, 5)]], [TEXTS[1]])
    text, busy = llava.model.model.language_model, []
    modules = {"language_model": text, "layer": text.layers[1], "vision": llava.model.model.vision_tower}

    def call(module: Any, args: Any) -> None:
        if not busy:
            busy.append(None)
            busy.append(logits(llava, other, logits_to_keep=torch.tensor([-1])))

    with foveate.prune(llava.model, method, keep=0.25):
        wanted, inner = logits(llava, inputs), logits(llava, other)
        handle = modules[place].register_forward_pre_hook(call)
        try:
            found = logits(llava, inputs)
        finally:
            handle.remove()
    assert torch.equal(found, wanted) and torch.allclose(busy[1][:, -1], inner[:, -1], atol=1e-6)


def test_a_forward_that_is_interrupted_from_the_keyboard(llava: Zoo) -> None:
    def interrupt(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    inputs, text = single(llava), llava.model.model.language_model
    alone = torch.randn(1, 30, 64)
    plain = text(inputs_embeds=alone).last_hidden_state
    with foveate.prune(llava.model, "fastv", keep=0.25) as pruning:
        right = generate(llava, inputs)
        for call in (logits, generate):
            handle = text.layers[3].register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                call(llava, inputs)
            handle.remove()
            assert torch.equal(text(inputs_embeds=alone).last_hidden_state, plain)
            assert gap(generate(llava, inputs), right) == 0
    assert not pruning.attached


def test_pruning_is_not_taken_off_while_another_thread_calls_the_model(llava: Zoo) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(module: Any, args: Any) -> None:
        entered.set()
        assert leave.wait(20)

    handle = llava.model.model.language_model.layers[1].register_forward_pre_hook(wait)
    pruning = foveate.prune(llava.model, "fastv", keep=0.25)
    thread = threading.Thread(target=logits, args=(llava, single(llava)))
    thread.start()
    try:
        assert entered.wait(20)
        with pytest.raises(foveate.RuntimeStateError, match="another thread is in the middle"):
            pruning.detach()
        assert pruning.attached
    finally:
        leave.set()
        thread.join()
        handle.remove()
        pruning.detach()


def test_a_shallow_copy_of_a_pruned_model_is_the_same_model(llava: Zoo) -> None:
    with (
        foveate.prune(llava.model, "divprune", keep=0.25),
        pytest.raises(foveate.RuntimeStateError, match="already attached"),
    ):
        foveate.prune(copy.copy(llava.model), "fastv")


# -- what callers give besides


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_a_loop_of_ones_own_with_a_growing_mask(zoo: Zoo, method: str) -> None:
    """Qwen's models make positions of the whole mask, which are cut to those of the tokens given."""
    inputs, length = single(zoo), single(zoo)["input_ids"].shape[1]
    with foveate.prune(zoo.model, method, keep=0.25), torch.no_grad():
        wanted = generate(zoo, inputs, max_new_tokens=2, min_new_tokens=2)
        output = zoo.model(**inputs, use_cache=True)
        cache = next(value for name in ("cache", "past_key_values") if (value := getattr(output, name, None)))
        name = "past_key_values" if hasattr(output, "past_key_values") else "cache"
        mask = torch.ones(1, length + 1, dtype=torch.long)
        step = {"input_ids": wanted.sequences[:, length : length + 1], "attention_mask": mask}
        assert torch.allclose(logits(zoo, step, **{name: cache})[:, -1], wanted.logits[1], atol=2e-5)


@pytest.mark.parametrize("start", [1, 100, 10])
def test_packed_prompts_are_known_by_any_step_but_one(llava: Zoo, start: int) -> None:
    inputs, length = single(llava), single(llava)["input_ids"].shape[1]
    packed = {
        "input_ids": torch.cat([inputs["input_ids"]] * 2, 1),
        "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1),
        "position_ids": torch.cat([torch.arange(length), torch.arange(start, start + length)])[None],
    }
    with (
        foveate.prune(llava.model, "stride", keep=0.25),
        pytest.raises(foveate.RuntimeStateError, match="packed into one row"),
    ):
        logits(llava, packed, use_cache=False)


def test_a_mask_that_hides_an_image_from_the_last_token(llava: Zoo) -> None:
    inputs, length = single(llava), single(llava)["input_ids"].shape[1]
    ids, pixels = torch.cat([inputs["input_ids"]] * 2, 1), inputs["pixel_values"].repeat(2, 1, 1, 1)
    block = torch.ones(length, length).tril()
    mask = torch.block_diag(block, block).bool()[None, None]
    packed = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask}
    with (
        foveate.prune(llava.model, "fastv", keep=0.25),
        pytest.raises(foveate.RuntimeStateError, match="hides an image"),
    ):
        logits(llava, packed, use_cache=False)


@pytest.mark.parametrize("asked", [torch.tensor([10**6]), torch.tensor([-(10**6)]), [-1, -2], slice(-2, None)], ids=str)
def test_logits_to_keep_of_other_kinds_are_refused(llava: Zoo, asked: Any) -> None:
    with (
        foveate.prune(llava.model, "divprune", keep=0.25),
        pytest.raises(foveate.RuntimeStateError, match="logits_to_keep"),
    ):
        logits(llava, single(llava), logits_to_keep=asked)


def test_a_mask_that_is_too_short_is_refused(llava: Zoo) -> None:
    inputs = single(llava)
    short = {**inputs, "attention_mask": inputs["attention_mask"][:, 2:]}
    with foveate.prune(llava.model, "divprune", keep=0.25), pytest.raises(foveate.RuntimeStateError, match="columns"):
        logits(llava, short)
