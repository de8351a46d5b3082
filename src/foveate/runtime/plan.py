"""From the arguments of `attach` to the seams where a model is pruned."""

from __future__ import annotations

from typing import Any

from ..budget import Budget, Scope
from ..errors import FoveateError, MethodError, ModelError
from ..methods import Method, ModelFacts, Stage, get_method
from ..methods.base import counting_methods
from ..models import ModelAdapter
from ..models.base import FROM_ENCODER, FROM_SEQUENCE
from ..tokens import Cue
from .before import BeforeLlm
from .composition import Composition, Stages
from .inside import InsideLlm
from .inside import Stage as InsideStage
from .patches import PatchSeam
from .reading import OF_THE_LAYER_BELOW, OF_THE_LAYER_ITSELF
from .refusals import lacks_cues, takes_whole_images

MethodLike = str | Method | Composition
KeepLike = float | int | str


def facts_of(adapter: ModelAdapter) -> ModelFacts:
    """What methods may know of a model."""
    name = str(getattr(adapter.model, "name_or_path", ""))
    width = adapter.model.config.get_text_config().hidden_size
    commit = str(getattr(adapter.model.config, "_commit_hash", None) or "")
    return ModelFacts(name, width, len(adapter.text.layers), adapter.lineage(), commit)


def plan(
    adapter: ModelAdapter, method: Any, keep: Any, scope: Scope, positions: str, hyperparameters: dict[str, Any]
) -> tuple[PatchSeam | None, BeforeLlm | None, InsideLlm | None]:
    """The seams that the arguments of `attach` ask for, checked against the model before anything is changed.

    Raises:
        FoveateError: for anything that cannot work.
    """
    text_config, facts = adapter.model.config.get_text_config(), facts_of(adapter)
    patches: PatchSeam | None = None
    before: BeforeLlm | None = None
    stages: dict[int, InsideStage] = {}
    for bound, layer, budget in _wanted(adapter, facts, method, keep, scope, hyperparameters):
        if layer < 0:
            if patches is not None:
                raise MethodError("two methods before the vision encoder cannot be combined; give one of them.")
            patches = None if budget.keeps_all else PatchSeam(adapter, bound, budget)
            continue
        if layer == 0:  # what enters the first layer is what enters the language model
            if before is not None:
                raise MethodError(
                    f"{before.method.name} and {bound.name} both prune before the LLM and cannot be combined; "
                    "give one before it and others inside."
                )
            before = BeforeLlm(bound, budget, positions)
            continue
        if layer in stages:
            raise MethodError(f"two methods at layer {layer} cannot be combined; give each a layer of its own.")
        if not budget.keeps_all:
            stages[layer] = InsideStage(bound, budget, layer)
    rising = tuple(stages[layer] for layer in sorted(stages))
    inside = InsideLlm(rising, text_config, adapter.text.norm) if stages else None
    _check_positions(positions, text_config, inside)
    if inside is not None and "flex" in str(text_config._attn_implementation):
        raise ModelError("pruning inside the LLM cannot shorten flex_attention's block masks; use 'sdpa'.")
    if patches is not None:
        _check_unencoded(patches, [*([] if before is None else [before.method]), *(s.method for s in stages.values())])
    return patches, before, inside


def _wanted(
    adapter: ModelAdapter, facts: ModelFacts, method: Any, keep: Any, scope: Scope, hyperparameters: dict[str, Any]
) -> Stages:
    """The stages that are asked for, each bound to the model and at a layer that it has."""
    if isinstance(method, Composition):
        whole, parts = method.check(Budget(keep, scope)), method.methods
        stages = _wanted(adapter, facts, parts, [keep] * len(parts), scope, hyperparameters)
        return method.shared(whole, stages, facts.layers)
    names = list(method) if isinstance(method, (list, tuple)) else [method]
    keeps = list(keep) if isinstance(keep, (list, tuple)) else [keep] * len(names)
    if not names or not all(isinstance(name, (str, Method)) for name in names):
        raise MethodError(f"method={method!r} is no method; give a name, a foveate.get_method(...), or a list of them.")
    if len(keeps) != len(names):
        raise MethodError(f"give one keep value for each method: got {len(keeps)} for {len(names)}.")
    if len(names) > 1 and hyperparameters:
        raise MethodError(
            "hyperparameters go with one method name; with several, pass foveate.get_method(...) instances."
        )
    wanted: Stages = []
    given: Stages = []
    for name, amount in zip(names, keeps, strict=True):
        budget = Budget(amount, scope)
        made = get_method(name, **hyperparameters)
        if budget.by_content and not made.counts_by_content:
            raise MethodError(
                f"{made.name} cannot find how many tokens to keep, as keep='auto' asks; use one that can "
                f"({', '.join(counting_methods())}), or give a fraction such as keep=0.25."
            )
        bound = made if budget.keeps_all else made.bind(facts)
        _check_cues(adapter, bound)
        stages = bound.stages(facts.layers, budget)
        if not budget.keeps_all:
            given.append((bound, min(layer for _, layer, _ in stages), budget))
        wanted += stages
    _check_falling(given)
    for bound, layer, _ in wanted:
        _check_cues(adapter, bound)
        if bound.stage is Stage.BEFORE_ENCODER:
            _check_patches(adapter, bound, scope)
        else:
            _check_layer(bound, layer, facts.layers)
    return wanted


def _check_falling(given: Stages) -> None:
    """Raise MethodError where a method is to keep more of the unpruned than one before it leaves.

    Args:
        given: each method with the first of its layers, and what it was asked to keep.
    """
    least: dict[type, tuple[Method, Budget]] = {}  # a share and a number of tokens cannot be compared without an image
    for method, _, budget in sorted(given, key=lambda stage: stage[1]):
        if budget.by_content:
            continue
        before, left = least.setdefault(type(budget.keep), (method, budget))
        if float(budget.keep) > float(left.keep):
            raise MethodError(
                f"{method.name} cannot keep {budget}, as {before.name} before it leaves {left}; give falling "
                "budgets, such as keep=[0.5, 0.25]."
            )
        least[type(budget.keep)] = method, budget


def _check_cues(adapter: ModelAdapter, method: Method) -> None:
    missing = method.needs - adapter.given - FROM_SEQUENCE
    if missing:
        raise ModelError(lacks_cues(adapter.class_name, method.name, missing))


def _check_patches(adapter: ModelAdapter, method: Method, scope: Scope) -> None:
    if not adapter.leaves_out_patches:
        raise ModelError(takes_whole_images(adapter.class_name, method.name))
    if scope == "prompt":
        raise MethodError(
            f"{method.name} prunes before the vision encoder, which does not know which images share a prompt; use "
            "scope='image' or 'frame'."
        )


def _check_unencoded(patches: PatchSeam, others: list[Method]) -> None:
    """Raise MethodError where another method reads the encoder, which no longer sees all tokens."""
    for other in others:
        if other.needs & FROM_ENCODER:
            raise MethodError(
                f"{other.name} reads the vision encoder, from which {patches.method.name} leaves tokens out; combine "
                "the latter with a method that reads features only, such as 'divprune'."
            )


def _check_layer(method: Method, layer: int, layers: int) -> None:
    first = 1 if method.needs & {*OF_THE_LAYER_BELOW, *OF_THE_LAYER_ITSELF, Cue.LLM_READINGS} else 0
    if not first <= layer < layers:
        raise MethodError(
            f"{method.name} prunes at layer {layer}, but this model allows layers {first} to {layers - 1}."
        )
    if Cue.LLM_READINGS in method.needs and not method.llm_readings:
        raise MethodError(f"{method.name} needs LLM_READINGS but names no layers; override `llm_readings`.")
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


def _check_positions(positions: str, text_config: Any, inside: InsideLlm | None) -> None:
    if positions not in ("keep", "compact"):
        raise FoveateError(f"positions={positions!r} is unknown; use 'keep' or 'compact'.")
    rope = getattr(text_config, "rope_parameters", None) or {}
    if positions == "compact" and (inside is not None or "mrope_section" in rope):
        raise ModelError("positions='compact' works before the LLM and with 1-D positions only; use 'keep'.")
