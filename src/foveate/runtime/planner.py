"""From the arguments of `foveate.prune` to the stages at which a model is pruned: every check and refusal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..budget import Budget, Scope, ScopeLike, common_scope
from ..catalog import (
    explain_missing_cues,
    explain_missing_experts,
    explain_unread_blocks,
    explain_whole_blocks,
    explain_whole_images,
)
from ..errors import BudgetError, FoveateError, MethodError, ModelError
from ..methods import Method, ModelFacts, Stage, Where, get_method
from ..methods.toolkit.registry import counting_methods
from ..models import ModelAdapter
from ..tokens import Cue, Source
from .cues import BEFORE_LLM
from .guide import guide_of
from .seams.before_llm import Positions

_ONE_METHOD = "hyperparameters go with one method name; with several, pass foveate.get_method(...) instances."
_ROUNDING = 1e-9  # by which a share may exceed 1 because of floating point


@dataclass(frozen=True)
class Composition:
    """Methods that share one budget; made by `compose`, taken by `foveate.prune` and `foveate.attach`."""

    methods: tuple[Method, ...]
    ratio: float = 0.5

    def __str__(self) -> str:
        return " + ".join(method.name for method in self.methods)

    def check(self, budget: Budget) -> Budget:
        """The budget itself; raises BudgetError unless it is a fraction."""
        if not isinstance(budget.keep, float):
            raise BudgetError(
                f"keep={budget.keep!r} cannot be shared by {self}; give a fraction of the unpruned, such as 0.25."
            )
        return budget

    def stages(self, methods: Sequence[Method], facts: ModelFacts, budget: Budget, beside: float = 0.0) -> list[Stage]:
        """The stages of the bound `methods` in a model, in order, with their shares of the budget.

        Where a method prunes does not depend on how much it keeps. So the methods are asked for their stages as if all
        were kept, and each stage gets its budget here.

        Args:
            methods: bound to the model.
            facts: of the model.
            budget: of all together.
            beside: what else is paid of it, a fraction of the unpruned tokens: the pass of a smaller model.

        Raises:
            BudgetError: for a budget that no share of the first stage gives.
        """
        whole = Budget(1.0, budget.scope)
        stages = sorted((stage for method in methods for stage in _stages_of(method, facts, whole)), key=_sort_key)
        layers = facts.layers
        if budget.keeps_all:
            return stages
        starts = [stage.first_layer for stage in stages]
        keep = float(budget.keep)
        if beside >= keep:
            raise BudgetError(
                f"keep={keep:.4g} is too little for {self}: the small model's pass alone costs as much as "
                f"{beside:.4g} of the tokens; give more, read lower layers of it, or give it without foveate.compose."
            )
        first = self.first_share(keep - beside, starts, layers)
        shares = [first * self.ratio**index for index in range(len(stages))]
        return [replace(stage, budget=Budget(share, budget.scope)) for stage, share in zip(stages, shares, strict=True)]

    def first_share(self, keep: float, starts: Sequence[int], layers: int) -> float:
        """What the first stage leaves of the unpruned tokens, so that the average over all layers is `keep`.

        Args:
            keep: fraction in (0, 1).
            starts: rising; the layer whose input each stage shortens.
            layers: of the language model.
        """
        ends = [*starts[1:], layers]
        if not keep * layers > starts[0]:
            raise BudgetError(
                f"keep={keep:.4g} is too little for {self}: all tokens pass the layers below layer {starts[0]}, which "
                f"is {starts[0] / layers:.4g} on average over {layers} layers; give more, or prune before the LLM."
            )
        # Layers that a token of the first stage's share passes on average.
        passed = sum(self.ratio**index * (end - at) for index, (at, end) in enumerate(zip(starts, ends, strict=True)))
        share = (keep * layers - starts[0]) / passed
        if share > 1 + _ROUNDING:
            raise BudgetError(
                f"keep={keep:.4g} is too much for {self}: with ratio={self.ratio} they leave at most "
                f"{(starts[0] + passed) / layers:.4g} on average over {layers} layers; give less, or raise ratio."
            )
        return min(share, 1.0)


def compose(*methods: str | Method, ratio: float = 0.5) -> Composition:
    """Several methods with one honest budget.

    Examples:
        >>> with foveate.prune(model, foveate.compose("divprune", "fastv"), keep=0.25) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> report = pruning.report()
        >>> [round(stage.budget.keep, 3) for stage in report.stages]
        [0.357, 0.179]
        >>> report.average_visual_tokens / report.tokens_before
        0.25

    `keep` is then the average number of visual tokens over the language model's layers, as a fraction of the unpruned
    ones: what `Report.average_visual_tokens` tells, so that pruning late is not taken for pruning early. It is shared
    by one rule: in the order of their layers, each stage keeps `ratio` of what the one before it left, and the first
    keeps as much as makes the average right. Of L layers, with stages at layers ``l_0 <= l_1 <= ...``, the first keeps
    the fraction ``(keep * L - l_0) / sum_i ratio^i * (l_(i+1) - l_i)``, the last ``l_(i+1)`` being L; all that comes
    before the LLM, the vision encoder included, is layer 0. Each image's counts are rounded, which can move its average
    by up to half a token. `Report.stages` tells what each stage was given.

    Args:
        methods: names or instances, at most one before the vision encoder and one before the LLM, others inside them,
            each at a block or layer of its own. Of a method with several layers each is a stage.
        ratio: in (0, 1).

    Raises:
        MethodError: for no method, an unknown one, or a ratio out of range.
    """
    if not methods or not all(isinstance(method, (str, Method)) for method in methods):
        raise MethodError(f"compose{methods!r}: give names of methods or foveate.get_method(...), one after the other.")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise MethodError(f"compose: ratio={ratio!r} must lie between 0 and 1, such as 0.5.")
    return Composition(tuple(get_method(method) for method in methods), float(ratio))


MethodLike = str | Method | Composition
KeepLike = float | int | str | Budget


def facts_of(adapter: ModelAdapter) -> ModelFacts:
    """What methods may know of a model."""
    name = str(getattr(adapter.model, "name_or_path", ""))
    text = adapter.model.config.get_text_config()
    width, heads = text.hidden_size, int(getattr(text, "num_attention_heads", 0) or 0)
    commit = str(getattr(adapter.model.config, "_commit_hash", None) or "")
    layers, attention = len(adapter.text.layers), adapter.attention_layers
    blocks = 0 if adapter.encoder_layout is None else adapter.feature_blocks()
    attending = None if len(attention) == layers else attention
    read = tuple(sorted(adapter.attention_modules()))
    return ModelFacts(
        name, width, layers, adapter.lineage(), commit, attending, adapter.vision_width, blocks, read, heads=heads
    )


def plan(
    adapter: ModelAdapter,
    method: Any,
    keep: Any,
    scope: ScopeLike | None,
    positions: Positions,
    hyperparameters: dict[str, Any],
) -> list[Stage]:
    """The stages that the arguments of `foveate.prune` ask for and that drop something, by rising layer.

    Everything is checked against the model before it is changed.

    Raises:
        FoveateError: for anything that cannot work.
    """
    scope = common_scope(keep if isinstance(keep, (list, tuple)) else [keep], scope)
    text_config, facts = adapter.model.config.get_text_config(), facts_of(adapter)
    wanted = sorted(_plan_stages(adapter, facts, method, keep, scope, hyperparameters), key=_sort_key)
    for stage, following in itertools.pairwise(wanted):
        if _sort_key(stage) == _sort_key(following):
            raise MethodError(_describe_clash(stage.method, following))
    stages = [stage for stage in wanted if not stage.budget.keeps_all]
    inside = any(stage.where is Where.INSIDE_LLM for stage in stages)
    _check_positions(positions, text_config, inside)
    if inside and adapter.inside_refused:
        raise ModelError(
            f"{adapter.class_name} cannot be pruned inside its language model, because {adapter.inside_refused}; use a "
            "method before the LLM, such as 'divprune'."
        )
    if inside and "flex" in str(text_config._attn_implementation):
        raise ModelError("pruning inside the LLM cannot shorten flex_attention's block masks; use 'sdpa'.")
    deepest = adapter.deepest_stage
    if inside and stages[-1].layer > deepest:
        raise ModelError(
            f"{stages[-1].method.name} would prune at layer {stages[-1].layer} of {adapter.class_name}, but from layer "
            f"{deepest + 1} on layers take keys and values of tokens from below; prune at layer {deepest} at most, or "
            "before the LLM."
        )
    return stages


def pair_methods(method: Any, keep: Any) -> list[tuple[str | Method, Any]]:
    """Each method that is asked for with what it is to keep.

    Raises:
        MethodError: for what is not a method, and where there are more of the one than of the other.
    """
    names = list(method) if isinstance(method, (list, tuple)) else [method]
    keeps = list(keep) if isinstance(keep, (list, tuple)) else [keep] * len(names)
    if not names or not all(isinstance(name, (str, Method)) for name in names):
        raise MethodError(
            f"method={method!r} is not a method; give a name, a foveate.get_method(...), or a list of them."
        )
    if len(keeps) != len(names):
        raise MethodError(f"give one keep value for each method: got {len(keeps)} for {len(names)}.")
    return list(zip(names, keeps, strict=True))


def _sort_key(stage: Stage) -> tuple[int, int]:
    """The place of a stage in a forward, by which stages are sorted; two cannot have the same."""
    return list(Where).index(stage.where), stage.layer


def _describe_clash(first: Method, second: Stage) -> str:
    if second.where is Where.BEFORE_ENCODER:
        return "two methods before the vision encoder cannot be combined; give one of them."
    if second.where is Where.BEFORE_LLM:
        return (
            f"{first.name} and {second.method.name} both prune before the LLM and cannot be combined; "
            "give one before it and others inside."
        )
    if second.where is Where.INSIDE_ENCODER:
        return f"two methods at block {second.layer} of the vision encoder cannot be combined; give each its own block."
    return f"two methods at layer {second.layer} cannot be combined; give each a layer of its own."


def _plan_stages(
    adapter: ModelAdapter, facts: ModelFacts, method: Any, keep: Any, scope: Scope, hyperparameters: dict[str, Any]
) -> list[Stage]:
    """The stages that are asked for, each bound to the model and at a layer that it has."""
    if isinstance(method, Composition):
        whole = method.check(Budget(keep, scope))
        if hyperparameters and len(method.methods) > 1:
            raise MethodError(_ONE_METHOD)
        parts = [get_method(part, **hyperparameters) for part in method.methods]
        methods = [_bind_method(adapter, facts, part, whole) for part in parts]
        guide = guide_of(methods, adapter)
        share = 0.0 if guide is None else guide.share
        return _check_stages(adapter, facts, scope, method.stages(methods, facts, whole, share))
    pairs = pair_methods(method, keep)
    if len(pairs) > 1 and hyperparameters:
        raise MethodError(_ONE_METHOD)
    wanted: list[Stage] = []
    given: list[Stage] = []
    for name, amount in pairs:
        budget = Budget(amount, scope)
        bound = _bind_method(adapter, facts, get_method(name, **hyperparameters), budget)
        stages = _stages_of(bound, facts, budget)
        if budget.by_content:
            _check_counting(bound, stages, budget)
        if not budget.keeps_all:
            given.append(replace(min(stages, key=_sort_key), method=bound, budget=budget))
        wanted += stages
    _check_decreasing(given)
    return _check_stages(adapter, facts, scope, wanted)


def _stages_of(method: Method, facts: ModelFacts, budget: Budget) -> list[Stage]:
    """The stages of a bound method, each at the first layer from its own on that gives the attention that it reads."""
    stages = method.stages(facts.layers, budget)
    if not isinstance(stages, (list, tuple)) or not stages or not all(isinstance(one, Stage) for one in stages):
        raise MethodError(
            f"{method.name}: its stages are {stages!r}; they must be a list of foveate.Stage, at least one."
        )
    inside = [stage.where is Where.INSIDE_LLM for stage in stages]
    readable = [
        facts.readable_layer(stage.layer, stage.method) if deep else stage.layer
        for stage, deep in zip(stages, inside, strict=True)
    ]
    if readable == [stage.layer for stage in stages]:
        return stages
    moved = [
        stage if stage.layer == layer else replace(stage, layer=layer, asked=stage.layer)
        for stage, layer in zip(stages, readable, strict=True)
    ]
    # Of stages that have come to the same layer the last one leaves what the schedule leaves there.
    left = {_sort_key(stage): place for place, stage in enumerate(moved)}.values()
    starts = {place: moved[place].first_layer for place in left}
    return [replace(moved[place], budget=moved[place].budget.at_layers(starts, facts.layers)) for place in left]


def _bind_method(adapter: ModelAdapter, facts: ModelFacts, method: Method, budget: Budget) -> Method:
    """A method made ready for the model, if it can give the budget."""
    if method.experts is not None and Cue.ROUTER_LOGITS not in method.needs and not any(adapter.moe()):
        raise ModelError(explain_missing_experts(adapter.class_name, method.name))
    bound = method if budget.keeps_all else method.bind(facts)
    _check_cues(adapter, bound)
    return bound


def _check_stages(adapter: ModelAdapter, facts: ModelFacts, scope: Scope, stages: list[Stage]) -> list[Stage]:
    """The stages themselves, if the model lets them prune where they want to."""
    for stage in stages:
        _check_cues(adapter, stage.method)
        if stage.where is Where.BEFORE_ENCODER:
            _check_patches(adapter, stage.method, scope)
        elif stage.where is Where.INSIDE_ENCODER:
            _check_block(adapter, facts, stage, scope)
        else:
            _check_layer(stage.method, stage.where, stage.layer, facts.layers)
    return stages


def _check_counting(method: Method, stages: Sequence[Stage], budget: Budget) -> None:
    """Raise where an image's content cannot decide how many tokens the method keeps, or not by the rule asked for."""
    if method.counts_by_content:
        if budget.similarity is not None:
            raise BudgetError(
                f"{method.name} counts by a rule of its own, which has no similarity; leave similarity out of "
                f"keep={budget.keep!r}."
            )
    elif any(stage.where is not Where.BEFORE_LLM for stage in stages):
        raise MethodError(
            f"{method.name} cannot find how many tokens to keep, as keep='auto' asks, because it does not prune before "
            f"the LLM alone; use a method that does, such as 'idpruner', or one that counts by a rule of its own "
            f"({', '.join(counting_methods())}), or give a fraction such as keep=0.25."
        )


def _check_decreasing(given: Sequence[Stage]) -> None:
    """Raise MethodError where a method is to keep more of the unpruned than one before it leaves.

    Args:
        given: each method at the first of its places, with what it was asked to keep.
    """
    least: dict[type, tuple[Method, Budget]] = {}  # a share and a number of tokens cannot be compared without an image
    for stage in sorted(given, key=_sort_key):
        method, budget = stage.method, stage.budget
        if budget.by_content:
            continue
        before, left = least.setdefault(type(budget.keep), (method, budget))
        if budget.keep > left.keep:  # type: ignore[operator]
            raise MethodError(
                f"{method.name} cannot keep {budget}, as {before.name} before it leaves {left}; give falling "
                "budgets, such as keep=[0.5, 0.25]."
            )
        least[type(budget.keep)] = method, budget


def _check_cues(adapter: ModelAdapter, method: Method) -> None:
    needs: object = method.needs
    if not isinstance(needs, Set) or not all(isinstance(cue, Cue) for cue in needs):
        raise MethodError(
            f"{method.name}: needs={needs!r} must be a set of cues, such as frozenset({{foveate.Cue.TEXT_EMBEDDINGS}})."
        )
    missing = method.needs - adapter.available_cues
    if missing:
        raise ModelError(explain_missing_cues(adapter.class_name, method.name, missing, method.instead))


def _check_patches(adapter: ModelAdapter, method: Method, scope: Scope) -> None:
    if not adapter.leaves_out_patches:
        raise ModelError(explain_whole_images(adapter.class_name, method.name))
    _check_scope(method, Where.BEFORE_ENCODER, scope)


def _check_scope(method: Method, where: Where, scope: Scope) -> None:
    if scope not in ("image", "frame"):
        raise MethodError(
            f"{method.name} prunes {where.value}, which does not know which images share a prompt; use "
            "scope='image' or 'frame'."
        )


def _check_block(adapter: ModelAdapter, facts: ModelFacts, stage: Stage, scope: Scope) -> None:
    """Raise FoveateError where a stage inside the vision encoder finds no block there, or not what it reads."""
    method, block = stage.method, stage.layer
    if adapter.encoder_layout is None:
        raise ModelError(explain_whole_blocks(adapter.class_name, method.name))
    if block >= facts.blocks:
        raise MethodError(
            f"{method.name} prunes at block {block} of the vision encoder, but this model allows blocks 0 to "
            f"{facts.blocks - 1}."
        )
    _check_scope(method, Where.INSIDE_ENCODER, scope)
    foreign = method.needs - Cue.of(Source.ENCODER)
    if foreign:
        raise MethodError(
            f"{method.name} needs {', '.join(sorted(cue.value for cue in foreign))}, which is not there yet inside the "
            "vision encoder; use it before the LLM."
        )
    reads = method.needs & {Cue.ENCODER_ATTENTION, Cue.ENCODER_READINGS}
    attending = sorted(adapter.attention_modules()) if reads else []
    if reads and not attending[0] < block:
        raise MethodError(explain_unread_blocks(method.name, block, attending[0]))


def _check_layer(method: Method, where: Where, layer: int, layers: int) -> None:
    # Before the language model there is nothing to read but encoder and text; at its layer 0 nothing from below.
    there = Cue.of(Source.ENCODER, Source.GUIDE, *[Source.LAYER] * (where is Where.INSIDE_LLM))
    first = 1 if method.needs - there - BEFORE_LLM else 0
    if not first <= layer < layers:
        raise MethodError(
            f"{method.name} prunes at layer {layer}, but this model allows layers {first} to {layers - 1}."
        )
    for cue in (Cue.LLM_READINGS, Cue.LLM_TRANSITIONS):
        if cue in method.needs and not method.llm_readings:
            raise MethodError(f"{method.name} needs {cue.name} but names no layers; override `llm_readings`.")
    for read in method.llm_readings:
        if not 0 <= read < layer:
            raise MethodError(
                f"{method.name} prunes at layer {layer} and reads the attention of layer {read}, which is not one of "
                f"the layers 0 to {layer - 1} below; choose one of these."
            )
    if layer and Cue.TEXT_EMBEDDINGS in method.needs and Cue.INPUT_EMBEDDINGS not in method.needs:
        raise MethodError(
            f"{method.name} compares images with the text that enters the language model, which hidden states at layer "
            f"{layer} are not; use it before the LLM."
        )


def _check_positions(positions: str, text_config: Any, inside: bool) -> None:
    if positions not in get_args(Positions):
        raise FoveateError(f"positions={positions!r} is unknown; use 'original' or 'compact'.")
    rope = getattr(text_config, "rope_parameters", None) or {}
    if positions == "compact" and (inside or "mrope_section" in rope):
        raise ModelError("positions='compact' works before the LLM and with 1-D positions only; use 'original'.")
