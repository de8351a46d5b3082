"""What there is to know of a method, read off its class and docstrings: for ``foveate methods`` and the docs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .budget import Budget
from .errors import MethodError
from .methods import Method, Where, get_method, method_names
from .methods.toolkit import constraints
from .methods.toolkit.base import NO_PROVENANCE, in_words
from .methods.toolkit.published import Published
from .methods.toolkit.registry import has_own_count, method_class
from .methods.toolkit.two_stage import HybridMethod
from .models import SupportedModel, generic_model, supported_models
from .tokens import Cue, Source

OWN_RULE = "by a rule of its own"  # says how a method counts with keep="auto"
_LAYERS = 32  # of a model to ask for stages; which cues they need does not depend on it


@dataclass(frozen=True)
class Hyperparameter:
    """A field of a method, with its type and default as they are written in Python, and what its values must be."""

    name: str
    type: str
    default: str
    description: str
    constraint: str = ""


@dataclass(frozen=True)
class PublishedSettings:
    """What hyperparameters that follow the model are on some families: values by name, as they are in Python."""

    families: tuple[str, ...]
    values: dict[str, str]


@dataclass(frozen=True)
class MethodFacts:
    """One method: a sentence, labelled facts, paragraphs of its module's docstring, and its hyperparameters.

    `published` has an entry for each group of families on which the same settings were published; none where no
    hyperparameter follows the model.
    """

    name: str
    summary: str
    facts: dict[str, str]
    about: str
    hyperparameters: tuple[Hyperparameter, ...]
    published: tuple[PublishedSettings, ...] = ()


def facts_of(name: str) -> MethodFacts:
    """The facts of the method with this name.

    Raises:
        MethodError: for an unknown name, with the nearest known one.
    """
    cls = method_class(name)
    summary, about = _parts(cls)
    record = cls.provenance
    deviations = " ".join(record.deviations) or ("" if record is NO_PROVENANCE else "none known")
    facts = {
        "paper": record.source,
        "prunes": in_words(places_of(name)),
        "needs": needs_of(name),
        "cost": record.cost,
        'keep="auto"': _auto(name),
        "models": _models(cls, _cues(name)),
        "refuses": _refusals(cls, _cues(name)),
        "vLLM": _vllm(name, _cues(name)),
        "reference code": record.code,
        "read": record.read,
        "deviations": deviations,
    }
    known = {label: fact for label, fact in facts.items() if fact}
    return MethodFacts(name, summary, known, about, _hyperparameters(cls), _published_settings(cls))


def places_of(name: str) -> tuple[Where, ...]:
    """Where the method works unless a hyperparameter says otherwise."""
    try:
        return get_method(name).places()
    except MethodError:  # a hyperparameter without which there is no method
        return (method_class(name).where,)


def needs_of(name: str) -> str:
    """What the method reads besides the features, or which hyperparameter it needs first."""
    try:
        cues = cues_in_words(_all_needs(get_method(name)))
        return "; ".join(filter(None, (cues, method_class(name).requires))) or "features only"
    except MethodError as error:  # a hyperparameter without which there is no method
        return str(error).removeprefix(f"{name}: ").removeprefix("needs ").rstrip(".")


def cues_in_words(cues: Iterable[Cue]) -> str:
    """Cues as words."""
    return ", ".join(sorted(cue.name.lower().replace("_", " ") for cue in cues))


def refused_by(model: SupportedModel) -> list[str]:
    """The methods that models of this family cannot run, by name."""
    return [name for name in method_names() if _lacks(model, method_class(name), _cues(name))]


def _lacks(model: SupportedModel, cls: type[Method], needs: frozenset[Cue]) -> bool:
    if cls.where is Where.BEFORE_ENCODER:
        return not model.leaves_out_patches
    routes = Cue.ROUTER_LOGITS in model.cues
    return not needs <= set(model.cues) or (model.hybrid and _edits(cls)) or (_skips_experts(cls, needs) and not routes)


def _cues(name: str) -> frozenset[Cue]:
    try:
        return _all_needs(get_method(name))
    except MethodError:
        return frozenset()


def _all_needs(method: Method) -> frozenset[Cue]:
    """The cues of a method and of its stages, which may have methods of their own."""
    return method.needs.union(*(stage.method.needs for stage in method.stages(_LAYERS, Budget(0.25))))


def _models(cls: type[Method], needs: frozenset[Cue]) -> str:
    known = supported_models()
    if cls.where is Where.BEFORE_ENCODER:
        whole = ", ".join(row.class_name for row in known if not row.leaves_out_patches)
        return f"all but {whole} (the vision encoder takes whole images)"
    lacking = {row.class_name: f"no {cues_in_words(needs - set(row.cues))}" for row in known if needs - set(row.cues)}
    if _edits(cls):
        lacking |= {row.class_name: "no attention in some layers" for row in known if row.hybrid}
    if _skips_experts(cls, needs):
        lacking |= {row.class_name: "no experts" for row in known if Cue.ROUTER_LOGITS not in row.cues}
    if not lacking:
        every = needs <= set(generic_model().cues)
        return "all that foveate supports" if every else "all with an adapter of their own"
    if needs & Cue.of(Source.ROUTER) or _skips_experts(cls, needs):
        routed = ", ".join(row.class_name for row in known if row.class_name not in lacking)
        return f"{routed}, and others where the language model has experts like Qwen3-MoE's"
    return "all but " + ", ".join(f"{model} ({lack})" for model, lack in lacking.items())


def _refusals(cls: type[Method], needs: frozenset[Cue]) -> str:
    """The error messages that users get; MODEL stands for the class of their model."""
    known, said = [*supported_models(), generic_model()], list(cls.refusals)
    if cls.where is Where.BEFORE_ENCODER and not all(row.leaves_out_patches for row in known):
        said.append(explain_whole_images("MODEL", cls.name))
    if _edits(cls) and any(row.hybrid for row in known):
        said.append(explain_attention_edits("MODEL", cls.name))
    if _skips_experts(cls, needs):
        said.append(explain_missing_experts("MODEL", cls.name))
    lacking = {missing for row in known if (missing := needs - set(row.cues))}
    said += sorted(explain_missing_cues("MODEL", cls.name, missing, cls.instead) for missing in lacking)
    return " ".join(f"“{sentence}”" for sentence in said)


def _edits(cls: type[Method]) -> bool:
    try:
        return bool(get_method(cls.name).edits(_LAYERS))
    except MethodError:  # a hyperparameter without which there is no method
        return cls.edits is not Method.edits


def _skips_experts(cls: type[Method], needs: frozenset[Cue]) -> bool:
    """Whether a method is refused where there are no experts, for another reason than that it reads their routers."""
    try:
        return get_method(cls.name).experts is not None and Cue.ROUTER_LOGITS not in needs
    except MethodError:  # a hyperparameter without which there is no method
        return False


def _auto(name: str) -> str:
    """By which rule an image's content decides how many tokens the method keeps, if any."""
    if has_own_count(name):
        return OWN_RULE
    try:
        stages = get_method(name).stages(_LAYERS, Budget("auto"))
    except MethodError:  # a hyperparameter without which there is no method
        return ""
    return "by how much the tokens of an image differ" if all(one.where is Where.BEFORE_LLM for one in stages) else ""


def _vllm(name: str, needs: frozenset[Cue]) -> str:
    places = places_of(name)
    if Where.BEFORE_ENCODER in places:
        return "no: the plugin prunes behind the encoder"
    if Where.INSIDE_ENCODER in places:
        return "no: inside the encoder the plugin prunes by foveate.InEncoder alone"
    if Where.BEFORE_LLM not in places:
        return "no: all layers share one table of cache blocks"
    if Where.INSIDE_LLM in places:
        alone = _lacked_by_vllm(get_method(name).needs)
        hybrid = issubclass(method_class(name), HybridMethod)
        return alone or "no: the plugin does nothing inside the LLM" + ("; with inside=False, yes" if hybrid else "")
    limits = ['but not keep="auto"'] if has_own_count(name) else []
    if any(cue.of_question for cue in needs):
        limits += [f"where the request gives foveate_query{_unasked(name)}", *_published_refusals(name)]
    allowed = "yes: " + "; ".join(limits) if limits else "yes"
    return _lacked_by_vllm(needs) or allowed


def _unasked(name: str) -> str:
    """The switches by which a method that chooses by the question chooses without, as the end of a sentence."""
    found = []
    for field in dataclasses.fields(method_class(name)):
        if field.init and isinstance(field.default, bool):
            needs = _all_needs(get_method(name, **{field.name: not field.default}))
            found += [] if any(cue.of_question for cue in needs) else [f"{field.name}={not field.default}"]
    return f", or with {' or '.join(found)} among the server's hyperparameters" if found else ""


def _lacked_by_vllm(needs: frozenset[Cue]) -> str | None:
    return next((f"no: {cue.not_in_vllm}" for cue in Cue if cue in needs and cue.not_in_vllm), None)


def _published_refusals(name: str) -> list[str]:
    """What published settings of some families need that vLLM cannot give."""
    method, refused = get_method(name), dict[str, list[str]]()
    for row in supported_models():
        bound = method.published_for(row.lineage)  # what it would load is not there
        for cue in sorted(bound.needs - method.needs, key=lambda cue: cue.name):
            if cue.not_in_vllm:
                refused.setdefault(cues_in_words([cue]), []).append(row.class_name)
    return [f"not on {', '.join(models)}, where it needs the {cue}" for cue, models in refused.items()]


def _parts(cls: type[Method]) -> tuple[str, str]:
    """The first line of a module's docstring, and the paragraphs behind it, in which each numbered step has a line."""
    text = sys.modules[cls.__module__].__doc__
    if not text:  # the class says at least what it is
        return _paragraph((inspect.getdoc(cls) or cls.name).partition("\n\n")[0]), ""
    first, _, rest = inspect.cleandoc(text).partition("\n")
    paragraphs = (re.split(r"\n(?=\d\. )", part) for part in rest.strip().split("\n\n") if part.strip())
    return first.strip(), "\n\n".join("\n".join(map(_paragraph, steps)) for steps in paragraphs)


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _hyperparameters(cls: type[Method]) -> tuple[Hyperparameter, ...]:
    hints, described = typing.get_type_hints(cls), _read_descriptions(inspect.getdoc(cls) or "")
    return tuple(
        Hyperparameter(
            field.name,
            _type(hints[field.name]),
            _default(field),
            described.get(field.name, ""),
            constraints.in_words(cls, field.name),
        )
        for field in dataclasses.fields(cls)
        if field.init
    )


def _published_settings(cls: type[Method]) -> tuple[PublishedSettings, ...]:
    """The published settings of each supported family, those of equal ones together."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, Published)}
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in supported_models() if defaults else ():
        values = tuple(repr(default.on(row.lineage)) for default in defaults.values())
        groups.setdefault(values, []).append(row.model_type)
    made = [PublishedSettings(tuple(names), dict(zip(defaults, v, strict=True))) for v, names in groups.items()]
    return tuple(made)


def _read_descriptions(docstring: str) -> dict[str, str]:
    """The ``Args:`` of a docstring."""
    _, _, block = docstring.partition("\nArgs:\n")
    block = re.split(r"^\S", block, maxsplit=1, flags=re.MULTILINE)[0]
    _, *found = re.split(r"^    (\w+): ", block, flags=re.MULTILINE)
    return {name: _paragraph(text) for name, text in zip(found[::2], found[1::2], strict=True)}


def _type(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_type, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _default(field: dataclasses.Field[Any]) -> str:
    if isinstance(field.default, Published):
        return repr(field.default.default)
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def explain_attention_edits(model: str, method: str) -> str:
    """The method edits attention in layers of the model that have none."""
    return (
        f"{method} edits the attention of layers that have linear attention or convolution in {model}, and so nothing "
        "to edit; choose another method."
    )


def explain_missing_cues(
    model: str, method: str, missing: Iterable[Cue], instead: str = "choose another method"
) -> str:
    """The model cannot give what the method reads; `instead` says what to do."""
    lacking = ", ".join(sorted(cue.value for cue in missing))
    return f"{model} cannot give what {method} needs: {lacking}; {instead}."


def explain_missing_experts(model: str, method: str) -> str:
    """The method sends tokens past experts, and the model has none."""
    return (
        f"{method} sends tokens past experts, and the language model of {model} has none that foveate can route "
        "around; give a model that has some, or use a method that only chooses tokens, such as 'divprune'."
    )


def explain_unread_blocks(method: str, block: int, first: int) -> str:
    """The method reads the vision encoder's attention, but only from block `first` on do blocks see whole images."""
    return (
        f"{method} reads the attention of the vision encoder, but below block {block} no block attends to whole "
        f"images; choose a block above {first}, or a method that reads features only, such as 'divprune'."
    )


def explain_whole_blocks(model: str, method: str) -> str:
    """Patches cannot leave between the blocks of the model's vision encoder."""
    return (
        f"{method} prunes inside the vision encoder, but foveate does not know how the blocks of that of {model} go on "
        "without some of the patches; use the method before the LLM."
    )


def explain_whole_images(model: str, method: str) -> str:
    """Patches cannot be left out of the model's vision encoder."""
    return (
        f"{method} leaves patches out of the vision encoder, but that of {model} takes whole images; use a "
        "method that prunes before the LLM, such as 'divprune'."
    )
