"""Situations in which a pruned model is called, each with what is right there."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import fuzz_prompts as draw
import torch
from fuzz_case import (
    Case,
    Inputs,
    Skip,
    against_blinded,
    copied,
    joined,
    longer_by,
    masked,
    positions,
    real_of,
    report_of,
    same_generation,
    shortened,
    situation,
)
from fuzz_oracles import TIGHT, Wrong, blinded, causal, check_counts, expect, pruned, same, watched
from torch import Tensor

import foveate
import tiny_models as zoo
from foveate.runtime.compat import cache_of_output


@situation(12)
def forward(case: Case) -> None:
    """A bare forward of any batch, with any mask."""
    side = case.rng.choice(["left", "left", "right"])
    inputs = masked(case, draw.batch(case.rows(), side))
    asked, cached = case.asked(), case.chance(0.5)
    if case.chance(0.2) and "position_ids" not in inputs and inputs.get("attention_mask") is not None:
        inputs["position_ids"] = positions(case, inputs)
        case.notes.append("position_ids given")

    def script(noted: Callable[[], None]) -> list[Tensor]:
        out = case.call(inputs, use_cache=cached).logits
        noted()
        return [out]

    against_blinded(case, asked, script, [inputs])


@situation(10)
def loop(case: Case) -> None:
    """Prefill, then tokens by hand, with a mask that grows or none, one cache handed on; also several at once."""
    inputs = dict(draw.batch(case.rows()))
    rows, length = inputs["input_ids"].shape
    bare = bool(inputs["attention_mask"].all()) and case.chance(0.3)
    if bare:
        inputs.pop("attention_mask")
    steps, parts, total = case.rng.randint(1, 4), [inputs], length
    for _ in range(steps):
        width = case.rng.choice([1, 1, 1, 3])
        total += width
        ids = torch.randint(10, 200, (rows, width), generator=torch.Generator().manual_seed(case.rng.getrandbits(30)))
        part: Inputs = {"input_ids": ids}
        if not bare:
            part["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, total - length), value=1)
        parts.append(part)
    if case.z.mrope and not bare:  # a bare forward of Qwen takes no mask that counts the cache without positions
        whole = dict(inputs)
        for part in parts[1:]:
            whole = longer_by(case, whole, part["input_ids"].shape[1])
        place = positions(case, whole).split([part["input_ids"].shape[1] for part in parts], -1)
        for part, here in zip(parts, place, strict=True):
            part["position_ids"] = here
    asked = case.asked()
    across = case.rng.choice(["", "deepcopy", "pickle", "save"])
    case.notes.append(f"{steps} steps, bare {bare}, {across}")

    def script(noted: Callable[[], None]) -> list[Tensor]:
        out = case.call(parts[0], use_cache=True)
        logits, cache = [out.logits], cache_of_output(out)
        noted()
        for part in parts[1:]:
            cache = copied(cache, across)
            out = case.call(part, past_key_values=cache)
            cache = cache_of_output(out)
            logits.append(out.logits)
            noted()
        return logits

    against_blinded(case, asked, script, parts)


@situation(8)
def turns(case: Case) -> None:
    """Two turns, each with pictures or not, on one cache."""
    count = case.rng.randint(1, 2)
    first = draw.batch([draw.prompt(case.z, case.rng, case.rng.choice([0, 1, 1, 2])) for _ in range(count)])
    second = draw.batch([draw.prompt(case.z, case.rng, case.rng.choice([0, 1, 1]), start=False) for _ in range(count)])
    widths = [first["input_ids"].shape[1], second["input_ids"].shape[1]]
    second["attention_mask"] = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    if case.z.mrope:  # a bare forward numbers no picture behind a cache
        place = positions(case, {**first, **second, **joined(first, second)})
        first["position_ids"], second["position_ids"] = place.split(widths, -1)
    asked = case.asked()
    case.prompts += [first]

    def script(noted: Callable[[], None]) -> list[Tensor]:
        out = case.call(first, use_cache=True)
        noted()
        more = case.call(second, past_key_values=cache_of_output(out))
        noted()
        return [out.logits, more.logits]

    against_blinded(case, asked, script, [first, second])


@situation(12)
def generation(case: Case) -> None:
    """Cached as uncached, static, sampled, with beams, and as the blinded model."""
    how = case.rng.choice(["greedy", "greedy", "greedy", "beams", "sampled", "several", "static", "eager", "chunks"])
    case.notes.append(how)
    # For beams transformers repeats each picture, not each prompt's pictures: right for one picture a prompt.
    repeated = how in ("beams", "several")
    rows = [draw.prompt(case.z, case.rng, case.rng.choice([0, 1, 1])) for _ in range(2)] if repeated else case.rows()
    case.prompts = rows
    inputs = draw.batch(rows)
    if bool(inputs["attention_mask"].all()) and case.chance(0.2):
        inputs.pop("attention_mask")
    asked = case.asked()
    options: Inputs = {
        "beams": {"num_beams": 3, "output_logits": False},
        "sampled": {"do_sample": True},
        "several": {"num_return_sequences": 2, "do_sample": True},
        "static": {"cache_implementation": "static"},
        "chunks": {"prefill_chunk_size": 8},
    }.get(how, {})

    def seeded(**more: Any) -> Any:
        torch.manual_seed(7)
        return case.generate(inputs, **{**options, **more})

    with pruned(case.model, asked) as pruning, watched(pruning) as watch:
        if how == "eager":
            case.model.set_attn_implementation("eager")
        try:
            cached = seeded()
        finally:
            case.model.set_attn_implementation(case.kernel)
        check_counts(pruning)
        if how in ("greedy", "eager"):
            watch.note(*inputs["input_ids"].shape)
        options.pop("cache_implementation", None)
        options.pop("prefill_chunk_size", None)
        uncached = seeded(use_cache=False)
        same_generation("again", seeded(), seeded(), 0)
    same_generation("uncached", cached, uncached)
    last = inputs["input_ids"][:, -1]  # generation goes on behind it, unless it is a dropped visual token
    visual = bool(torch.isin(last, torch.tensor(case.z.visual_ids)).any())
    if how in ("greedy", "eager") and case.blinds(watch) and not visual:
        kept = watch.by_layer(room=4)
        base = causal(inputs.get("attention_mask"), len(inputs["input_ids"]), kept[0].shape[1])
        with blinded(case.model, kept, base):
            reference = seeded()
        same_generation("blinded", cached, reference)


@situation(10)
def alone(case: Case) -> None:
    """Each row of a batch as alone: bare and generated."""
    rows = case.rows(2, 4)
    asked = case.asked()
    with pruned(case.model, asked) as pruning:
        inputs = draw.batch(rows, side := case.rng.choice(["left", "left", "right"]))
        if not case.z.mrope:  # else padding on the left moves positions, and rotated keys with them
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        out = case.call(inputs, use_cache=False).logits
        reports = report_of(pruning)
        if side == "left":
            together = case.generate({k: v for k, v in inputs.items() if k != "position_ids"}, new=3)
        for number, row in enumerate(rows):
            own = case.call(row, use_cache=False).logits
            had = own.shape[1]
            mine = report_of(pruning) if any(k.startswith("pixel") for k in row) else []
            those = [image for image in reports if image.prompt == number]
            for a, b in zip(those, mine, strict=True):
                expect(torch.equal(a.kept, b.kept), f"row {number} of {side} batch keeps others than alone")
            pads = int((inputs["attention_mask"][number] == 0).sum()) if not reports and side == "right" else 0
            at = out.shape[1] - pads
            if reports and side == "right" and not shortened(pruning):
                continue
            same(f"row {number} of {side} batch", out[number, at - had : at], own[0])
            if side == "left":
                apart = case.generate(row, new=3)
                for step in range(3):
                    same(f"row {number}, step {step}", together.logits[step][number], apart.logits[step][0])


@situation(6)
def everything(case: Case) -> None:
    """With keep=1.0, a count that no picture reaches, or without pictures, not a bit changes."""
    kind = case.rng.choice(["1.0", "100%", "huge", "text", "compose", "several"])
    case.notes.append(kind)
    inputs = draw.batch(case.rows(images=(0,)) if kind == "text" else case.rows())
    if kind == "text" and any(key.startswith("pixel") for key in inputs):
        raise Skip
    asked = case.asked(plain=kind != "text")
    if kind != "text":
        asked.keep = {"1.0": 1.0, "100%": "100%", "huge": 100_000}.get(kind, 1.0)
        asked.options.pop("encoder_queries", None)
    if kind == "compose":
        asked.method = foveate.compose("divprune", "fastv")
    if kind == "several":
        asked.method, asked.keep = ["idpruner", "fastv", "pyramiddrop"][:2], [1.0, 1.0]
    if kind == "huge" and getattr(asked.method, "name", "") in ("fastmmoe", "visipruner"):
        raise Skip  # these change what is computed, whatever is dropped
    options: Inputs = {"use_cache": case.chance(0.5)}
    if case.chance(0.3):
        options["output_hidden_states"] = True
    if case.chance(0.3):
        options["logits_to_keep"] = case.rng.choice([0, 1, 3])
    plain, answer = case.call(inputs, **options), case.generate(inputs)
    with pruned(case.model, asked):
        same("forward", case.call(inputs, **options).logits, plain.logits, 0)
        same_generation("generation", case.generate(inputs), answer, 0)


@situation(8)
def asked_logits(case: Case) -> None:
    """logits_to_keep: a number, places, places of each prompt, a mask."""
    side = case.rng.choice(["left", "left", "left", "right"])
    inputs = draw.batch(case.rows(), side)
    asked = case.asked()
    rows, length = inputs["input_ids"].shape
    kind = case.rng.choice(["number", "number", "places", "places", "rows", "mask", "float", "negative"])
    if kind == "number":
        wanted: Any = case.rng.choice([0, 1, 1, 2, 5, length, length + 9])
    elif kind in ("places", "negative"):
        count = case.rng.randint(1, 4)
        span = range(-length, 0) if kind == "negative" else range(length)
        wanted = torch.tensor([case.rng.choice(span[-8:] if case.chance(0.7) else span) for _ in range(count)])
    elif kind == "float":
        wanted = torch.ones(length)
    else:
        wanted = torch.zeros(rows, length, dtype=torch.bool)
        wanted[:, -case.rng.randint(1, 6) :] = True
        if kind == "rows":
            wanted = torch.randint(length - 4 if length > 4 else 0, length, (rows, 2))
    case.notes.append(f"{side} {kind} {wanted if not isinstance(wanted, Tensor) else wanted.tolist()}")
    before = wanted.clone() if isinstance(wanted, Tensor) else wanted
    with pruned(case.model, asked) as pruning, watched(pruning) as watch:
        everything = case.call(inputs, use_cache=False).logits
        watch.note(rows, length)
        got = case.call(inputs, use_cache=False, logits_to_keep=wanted).logits
    if isinstance(wanted, Tensor):
        expect(torch.equal(wanted, before), "the caller's logits_to_keep was changed")
        if kind in ("mask", "rows", "float"):
            return  # what slicing by these gives is the model's business
        place = watch.places[0][:, wanted]
        real = real_of(inputs)[:, wanted]
        for row in range(rows):
            for number in range(len(wanted)):
                if real[row, number]:
                    at = int(place[row, number])
                    expect(at >= 0, "a dropped token's logits were given")
                    same(f"place {int(wanted[number])} of row {row}", got[row, number], everything[row, at])
    else:
        same("the last ones", got, everything[:, -wanted:] if wanted else everything)
        if wanted == 1:
            last = watch.places[0][:, -1]
            if bool(real_of(inputs)[:, -1].all()):
                expect(bool((last == everything.shape[1] - 1).all()), "the last token is not the last")


@situation(5)
def outputs(case: Case) -> None:
    """Tuples, hidden states, attentions, input ids by position."""
    inputs, asked = draw.batch(case.rows()), case.asked()
    real = real_of(inputs)
    kind = case.rng.choice(["tuple", "hidden", "attentions", "positional", "inference_mode", "grad", "int32"])
    case.notes.append(kind)
    with pruned(case.model, asked) as pruning, watched(pruning) as watch:
        want = case.call(inputs, use_cache=False).logits
        watch.note(*real.shape)
        if kind == "tuple":
            got = case.call(inputs, return_dict=False)[0]
        elif kind == "hidden":
            out = case.call(inputs, output_hidden_states=True)
            got = out.logits
            same("hidden states", case.model.lm_head(out.hidden_states[-1]), got, 1e-3)
        elif kind == "attentions":
            case.model.set_attn_implementation("eager")
            try:
                out = case.call(inputs, output_attentions=True)
            finally:
                case.model.set_attn_implementation(case.kernel)
            got = out.logits
            expect(out.attentions[-1].shape[2] == got.shape[1], "attentions of another length")
        elif kind == "positional":
            rest = {k: v for k, v in inputs.items() if k != "input_ids"}
            case.plainly = lambda: case.model(inputs["input_ids"], **rest)
            with torch.no_grad():
                got = case.model(inputs["input_ids"], **rest).logits
        elif kind == "inference_mode":
            case.plainly = lambda: case.model(**inputs)
            with torch.inference_mode():
                got = case.model(**inputs).logits.clone()
        elif kind == "grad":
            got = case.model(**inputs).logits.detach()
        else:
            got = case.call({k: v.int() if k in ("input_ids",) else v for k, v in inputs.items()}).logits
        place = watch.places[0]
        for row in range(len(place)):  # what padding gives is nobody's business
            at = place[row, (place[row] >= 0) & real[row]]
            same(f"{kind}, row {row}", got[row, at], want[row, at])


@situation(8)
def gradients(case: Case) -> None:
    """Training, with and without gradient checkpointing, and as the blinded model."""
    inputs, asked = draw.batch(case.rows(1, 2)), case.asked()
    kind = case.rng.choice(["again", "checkpointed", "reentrant", "frozen"])
    case.notes.append(kind)
    model = copy.deepcopy(case.model).train()
    if kind == "frozen":
        for parameter in model.model.language_model.embed_tokens.parameters():
            parameter.requires_grad_(False)
        model.enable_input_require_grads()

    def gradient(note: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        model.zero_grad()
        case.plainly = lambda: model(**inputs, use_cache=False)
        out = model(**inputs, use_cache=False).logits
        note()
        out[:, -1].square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with pruned(model, asked) as pruning, watched(pruning) as watch:
        want = gradient(lambda: watch.note(*inputs["input_ids"].shape))
        if kind != "again":
            model.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})
        got = gradient()
        check_counts(pruning)
    model.gradient_checkpointing_disable()
    same_gradients(kind, got, want)
    last = inputs["input_ids"][:, -1]  # the loss reads its logits
    if case.blinds(watch) and not bool(torch.isin(last, torch.tensor(case.z.visual_ids)).any()):
        kept = watch.by_layer()
        with blinded(model, kept, causal(inputs["attention_mask"], *inputs["input_ids"].shape)):
            same_gradients("blinded", want, gradient())


def same_gradients(name: str, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Two sets of gradients, up to rounding of the largest."""
    expect(a.keys() == b.keys(), f"{name}: gradients of other parameters: {sorted(a.keys() ^ b.keys())[:3]}")
    largest = max((float(x.abs().max()) for x in b.values()), default=0.0)
    for key in a:
        same(f"{name}: gradient of {key} (at most {largest:.3g})", a[key], b[key], 1e-4 * max(largest, 1.0))


@situation(6)
def threads(case: Case) -> None:
    """Several threads at once, as one after the other."""
    prompts, asked = case.rows(3, 4), case.asked()
    with pruned(case.model, asked) as pruning:
        want = []
        for row in prompts:
            want.append((case.generate(row).sequences, [image.kept for image in report_of(pruning)]))
        got: list[Any] = [None] * len(prompts)

        def one(number: int) -> None:
            try:
                sequences = case.generate(prompts[number]).sequences
                got[number] = sequences, [image.kept for image in report_of(pruning)]
            except Exception as error:
                got[number] = error

        together = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        if isinstance(a, Exception):
            raise a
        expect(torch.equal(a[0], b[0]), f"thread {number} says something else")
        if any(key.startswith("pixel") for key in prompts[number]):
            expect(len(a[1]) == len(b[1]) and all(map(torch.equal, a[1], b[1])), f"thread {number} reports another")


class _Injected(Exception):
    pass


@situation(6)
def failures(case: Case) -> None:
    """An exception somewhere in a call changes nothing for the next."""
    first, second, asked = draw.batch(case.rows(images=(1, 2))), draw.batch(case.rows()), case.asked()
    modules = [m for m in case.model.modules() if m is not case.model]
    with pruned(case.model, asked):
        want, text = case.call(second).logits, case.generate(second, new=2)
    with pruned(case.model, asked) as pruning:
        for _ in range(2):
            module, before = case.rng.choice(modules), case.chance(0.5)
            case.notes.append(f"{'before' if before else 'in'} {type(module).__name__}")

            def fail(*_: Any) -> None:
                raise _Injected

            handle = module.register_forward_pre_hook(fail) if before else module.register_forward_hook(fail)
            try:
                (case.call if case.chance(0.5) else case.generate)(first)
            except _Injected:
                pass
            finally:
                handle.remove()
        same("the next", case.call(second).logits, want, 0)
        same_generation("the next generation", case.generate(second, new=2), text, 0)
        expect(not pruning._stack.calls and not pruning._stack.generations, "calls are left over")


@situation(6)
def history(case: Case) -> None:
    """A forward does not depend on those before it, of this conversation or of others between."""
    asked = case.asked()
    first, second = draw.batch(case.rows(1, 2)), draw.batch(case.rows(1, 2))
    longer = longer_by(case, first, case.rng.choice([1, 1, 3]))
    use = case.chance(0.5)
    with pruned(case.model, asked):
        want = [case.call(one, use_cache=use).logits for one in (second,)]
    with pruned(case.model, asked):
        want.append(case.call(longer, use_cache=use).logits)
    with pruned(case.model, asked):
        case.call(first, use_cache=case.chance(0.5))
        if case.chance(0.5):
            case.generate(first, use_cache=case.chance(0.5))
        same("a longer answer", case.call(longer, use_cache=use).logits, want[1], 0)
        same("another prompt", case.call(second, use_cache=use).logits, want[0], 0)


@situation(6)
def interleaved(case: Case) -> None:
    """Two conversations take turns on one model; rows of a cache are repeated and chosen."""
    one, other, asked = draw.batch(case.rows(1, 2)), draw.batch(case.rows(1, 2)), case.asked()
    step = torch.tensor([[17]])

    def position(inputs: Inputs) -> Inputs:  # of the next token, which Qwen would number by its latest prompt
        if not case.z.mrope:
            return {}
        return {"position_ids": positions(case, longer_by(case, inputs, 1))[..., -1:]}

    at = [position(one), position(other)]

    def go_on(cache: Any, inputs: Inputs, place: Inputs) -> Tensor:
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        ids = step.expand(len(mask), -1)
        return case.call({"input_ids": ids, "attention_mask": mask, **place}, past_key_values=cache).logits

    with pruned(case.model, asked):
        want = [
            go_on(cache_of_output(case.call(x, use_cache=True)), x, p) for x, p in zip((one, other), at, strict=True)
        ]
        caches = [cache_of_output(case.call(inputs, use_cache=True)) for inputs in (one, other)]
        caches = [copied(cache, case.rng.choice(["", "deepcopy", "pickle"])) for cache in caches]
        if case.chance(0.5) and case.z.model.config.model_type not in ("qwen3_5", "qwen3_5_moe"):  # no copies of states
            twice = copy.deepcopy(caches[0])
            twice.batch_repeat_interleave(2)
            rows = len(one["input_ids"])
            chosen = torch.tensor([case.rng.randrange(2 * rows) for _ in range(case.rng.randint(1, 3))])
            twice.batch_select_indices(chosen)
            mask = {"attention_mask": one["attention_mask"].repeat_interleave(2, 0)[chosen]}
            place = {k: v.repeat_interleave(2, -2)[..., chosen, :] for k, v in at[0].items()}
            same("chosen rows", go_on(twice, mask, place), want[0].repeat_interleave(2, 0)[chosen])
        same("the other", go_on(caches[1], other, at[1]), want[1], TIGHT)
        same("the one", go_on(caches[0], one, at[0]), want[0], TIGHT)


@situation(6)
def precision(case: Case) -> None:
    """Half precision, autocast, another default dtype: finite, exact counts, the first step as uncached."""
    kinds = ["float16", "bfloat16", "autocast", "default", "default", "float64"]
    kind = case.rng.choice(kinds[: 5 if case.z.name.endswith("moe") else 6])
    case.notes.append(kind)
    inputs, asked = draw.batch(case.rows()), case.asked()
    if kind == "default":
        with pruned(case.model, asked) as pruning:
            case.call(inputs)
            kept = [image.kept for image in report_of(pruning)]
            torch.set_default_dtype(case.rng.choice([torch.bfloat16, torch.float16, torch.float64]))
            try:
                case.call(inputs)
                check_counts(pruning)
            finally:
                torch.set_default_dtype(torch.float32)
            for a, b in zip(report_of(pruning), kept, strict=True):
                expect(torch.equal(a.kept, b), "another default dtype makes another choice")
        return
    if kind == "autocast":
        with pruned(case.model, asked) as pruning, torch.autocast("cpu", dtype=torch.bfloat16):
            finite(case, inputs)
            check_counts(pruning)
        return
    dtype = getattr(torch, kind)
    z = zoo.Zoo(case.z.name, copy.deepcopy(case.model).to(dtype), case.z.processor, case.z.image, case.z.visual_ids)
    half = Case(z, case.rng)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    case.plainly = lambda: half.call(inputs)
    plain = torch.isfinite(half.call(inputs).logits).all()
    with pruned(z.model, asked) as pruning:
        case.plainly = lambda: half.generate(inputs, new=2)
        finite(half, inputs, bool(plain))
        check_counts(pruning)


def finite(case: Case, inputs: Inputs, plain: bool = True) -> None:
    """Generations are finite and begin alike with and without a cache."""
    cached, uncached = case.generate(inputs, new=2), case.generate(inputs, new=2, use_cache=False)
    expect(not plain or all(bool(torch.isfinite(x.float()).all()) for x in cached.logits), "not finite")
    if plain:
        same("first step", cached.logits[0], uncached.logits[0], 0)


@situation(5)
def packed(case: Case) -> None:
    """Prompts packed into one row: each as alone, or refused."""
    rows, asked = case.rows(2, 3), case.asked()
    place = [positions(case, row) for row in rows]
    if case.z.mrope:  # with the text index in front, by which transformers finds packed prompts
        place = [p.expand(3, -1, -1) if p.ndim == 2 else p[-3:] for p in place]
        place = [torch.cat([torch.arange(p.shape[-1])[None, None], p]) for p in place]
    keys = dict.fromkeys(key for row in rows for key in row)
    inputs = {k: torch.cat([r[k] for r in rows if k in r], 1 if k in draw.ALONG else 0) for k in keys}
    inputs.pop("attention_mask")
    inputs["position_ids"] = torch.cat(place, -1)
    with pruned(case.model, asked):
        own = [case.call(row, use_cache=False).logits for row in rows]
        out = case.call(inputs, use_cache=False).logits
    expect(out.shape[1] == sum(one.shape[1] for one in own), "another length than alone")
    start = 0
    for number, one in enumerate(own):
        same(f"prompt {number}", out[:, start : start + one.shape[1]], one)
        start += one.shape[1]


@situation(4)
def shortened_inputs(case: Case) -> None:
    """prune_inputs, and compact positions."""
    rows = [draw.prompt(case.z, case.rng, case.rng.choice([1, 1, 2])) for _ in range(case.rng.randint(1, 2))]
    inputs, asked = draw.batch(rows), case.asked(draw.BEFORE, plain=True)
    case.prompts += rows
    if case.chance(0.4):
        asked.options["positions"] = "compact"
    with pruned(case.model, asked) as pruning:
        hooked = case.generate(inputs)
        if any(stage.method.bias is not None for stage in pruning._stages):
            raise Skip
        same_generation("uncached", hooked, case.generate(inputs, use_cache=False))
    made = foveate.prune_inputs(case.model, inputs, asked.method, asked.keep, **asked.options)
    out = case.generate(made)
    for step, (a, b) in enumerate(zip(hooked.logits, out.logits, strict=True)):
        same(f"step {step}", a, b)


@situation(3)
def refusals(case: Case) -> None:
    """What cannot be pruned is refused by one sentence, and the next call is right."""
    inputs, asked = draw.batch(case.rows(images=(1, 2))), case.asked()
    ids = inputs["input_ids"]
    kind = case.rng.choice(["labels", "embeds", "few", "many", "no pixels", "mask length", "mask 3-D", "other model"])
    case.notes.append(kind)
    wrong: Inputs = dict(inputs)
    if kind == "labels":
        wrong["labels"] = ids
    elif kind == "embeds":
        wrong = {"inputs_embeds": torch.zeros(1, 5, case.model.config.get_text_config().hidden_size)}
    elif kind in ("few", "many"):
        at = (ids[0] == case.z.visual_ids[0]).nonzero()[:, 0]
        if not len(at):
            raise Skip
        wrong["input_ids"] = ids.clone()
        if kind == "few":
            wrong["input_ids"][0, at[0]] = 17
        else:
            wrong["input_ids"][0, (ids[0] != case.z.visual_ids[0]).nonzero()[-1]] = case.z.visual_ids[0]
    elif kind == "no pixels":
        wrong = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
    elif kind == "mask length":
        wrong["attention_mask"] = inputs["attention_mask"][:, 1:]
    elif kind == "mask 3-D":
        wrong["attention_mask"] = inputs["attention_mask"][:, None]
    with pruned(case.model, asked):
        want = case.call(inputs).logits
        if kind == "other model":
            for attach in (foveate.prune, foveate.attach):
                try:
                    attach(case.model, "random")
                except foveate.FoveateError:
                    continue
                raise Wrong("attached twice")
        else:
            outcome(case, wrong, kind)
        same("the next", case.call(inputs).logits, want, 0)


def outcome(case: Case, wrong: Inputs, kind: str) -> None:
    """A FoveateError, or whatever the model itself makes of it."""
    try:
        case.call(wrong)
    except foveate.FoveateError as error:
        case.notes.append(f"[refused: {error}]")
    except Exception as error:
        case.notes.append(f"[{type(error).__name__}: {str(error)[:80]}]")
        if kind in ("labels", "embeds"):
            raise
