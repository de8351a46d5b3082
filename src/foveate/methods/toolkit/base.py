"""What a pruning method is: its base class, where it prunes, and what it may know of a model."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from ...budget import Budget
from ...devices import full_precision
from ...errors import MethodError, near_miss
from ...importance.measured import short_name
from ...tokens import Cue, EncoderReading, Grid, Kind, Selection, Source, VisualTokens
from .constraints import check_fields
from .interventions import AttentionEdit, ExpertCut, ExpertSkip, Guide, LogitBias
from .notes import Note
from .published import Published, unset_settings


class Where(enum.Enum):
    """A place in the model where methods prune, in the order of a forward.

    Examples:
        >>> foveate.get_method("nuwa").places()
        (<Where.BEFORE_LLM: 'before the LLM'>, <Where.INSIDE_LLM: 'inside the LLM'>)
    """

    BEFORE_ENCODER = "before the vision encoder"
    INSIDE_ENCODER = "inside the vision encoder"
    BEFORE_LLM = "before the LLM"
    INSIDE_LLM = "inside the LLM"


def in_words(places: Sequence[Where]) -> str:
    """Places in the order of a forward, as the end of a sentence that begins with "prunes"."""
    words = " and ".join(where.value for where in places)
    return words.replace("LLM and inside the LLM", "LLM and inside it")


@dataclass(frozen=True)
class Stage:
    """One place where a method prunes, and what it leaves there.

    Examples:
        >>> [(stage.layer, str(stage.budget)) for stage in foveate.get_method("vscan").stages(32, foveate.Budget(0.25))]
        [(0, '0.375'), (16, '0.125')]

    Args:
        method: what chooses; it may be another one than that whose stage it is, with a `select` and needs of its own.
        where: in the model.
        layer: inside the LLM the zero-based layer whose input is shortened; 0 before the LLM, -1 before the encoder;
            inside the encoder the zero-based block whose input is shortened.
        budget: of the unpruned images.
        asked: the layer that was asked for, where the model gives nothing to read there and the next one is used.
    """

    method: Method
    where: Where
    layer: int
    budget: Budget
    asked: int | None = None

    def __post_init__(self) -> None:
        name = self.method.name if isinstance(self.method, Method) else str(self.method)
        if not isinstance(self.method, Method) or not isinstance(self.budget, Budget):
            raise MethodError(f"{name}: a Stage has a Method and a Budget, not {self.method!r} and {self.budget!r}.")
        if not isinstance(self.where, Where):
            raise MethodError(f"{name}: where={self.where!r} is not a place; give a foveate.Where.")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise MethodError(f"{name}: layer={self.layer!r} is not a layer; give a whole number.")
        outside = {Where.BEFORE_ENCODER: -1, Where.BEFORE_LLM: 0}
        if self.where in outside and self.layer != outside[self.where]:
            raise MethodError(
                f"{name}: a stage {self.where.value} has layer={outside[self.where]}, not {self.layer}; use "
                "Stage.before_llm or Stage.inside_llm."
            )
        if self.where is Where.INSIDE_ENCODER and self.layer < 0:
            raise MethodError(f"{name}: block={self.layer} is not a block of a vision encoder; the first is 0.")

    @property
    def first_layer(self) -> int:
        """The first layer of the language model that is handed what the stage leaves."""
        return self.layer if self.where is Where.INSIDE_LLM else 0

    @property
    def note(self) -> Note | None:
        """What users should know of the layer, where it is not the one that was asked for."""
        if self.asked is None:
            return None
        return Note(
            f"{self.method.name}: layer {self.asked} of this model gives no attention to read, as its layers of linear "
            f"attention or convolution do not; prunes at layer {self.layer} instead.",
            logging.WARNING,
        )

    @classmethod
    def before_llm(cls, method: Method, budget: Budget) -> Stage:
        """A stage that shortens what enters the LLM."""
        return cls(method, Where.BEFORE_LLM, 0, budget)

    @classmethod
    def inside_encoder(cls, method: Method, block: int, budget: Budget) -> Stage:
        """A stage that shortens what enters a block of the vision encoder."""
        return cls(method, Where.INSIDE_ENCODER, block, budget)

    @classmethod
    def inside_llm(cls, method: Method, layer: int, budget: Budget) -> Stage:
        """A stage at a layer of the LLM; what enters layer 0 is what enters the LLM."""
        return cls(method, Where.INSIDE_LLM if layer else Where.BEFORE_LLM, layer, budget)


@dataclass(frozen=True)
class Provenance:
    """Where a method comes from, and where foveate does otherwise: all that pages and the command line tell of it.

    Examples:
        >>> foveate.get_method("fastv").provenance.source
        'FastV, arXiv 2403.06764, ECCV 2024'

    Args:
        paper: its short name; "a reading of" it where not enough could be read to be sure.
        licence: of the reference code, none of which is copied.
        arxiv: its number there.
        venue: where it was published.
        repository: of the reference code, ``owner/name``.
        commit: the one that foveate is compared with.
        read: what of the paper and the code was read.
        deviations: sentences.
        evidence: the tests that compare the method with its reference.
        cost: of a selection among N tokens with d channels, of which K are kept.
    """

    paper: str
    licence: str
    arxiv: str = ""
    venue: str = ""
    repository: str = ""
    commit: str = ""
    read: str = ""
    deviations: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    cost: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.deviations, str) or isinstance(self.evidence, str):
            raise MethodError("a Provenance has tuples of deviations and of evidence; put a comma behind a single one.")

    @property
    def source(self) -> str:
        """The paper as it is cited."""
        return ", ".join(filter(None, (self.paper, self.arxiv and f"arXiv {self.arxiv}", self.venue)))

    @property
    def code(self) -> str:
        """The reference code and its licence."""
        repository = self.repository + (f" at {self.commit}" if self.commit else "")
        return "; ".join(filter(None, (repository, self.licence)))


NO_PROVENANCE = Provenance(paper="none given", licence="")  # of a method of another package that does not say


def attention_from(layers: Sequence[int], layer: int) -> int:
    """The first of `layers`, those with attention, from `layer` on; the last of them where none is left."""
    return next((one for one in layers if one >= layer), layers[-1])


@dataclass(frozen=True)
class ModelFacts:
    """The little that a method may know of the model when it is bound.

    Args:
        name_or_path: of the checkpoint; empty for a model that was built in memory.
        hidden_size: of the language model.
        layers: of the language model.
        lineage: the model's family, as transformers' ``config.model_type`` calls it, and then the families whose
            published settings it takes where none were published for it, nearest first.
        revision: the commit of the hub that the checkpoint was loaded from; empty for one that was not.
        attention_layers: the layers of the language model in which tokens attend to tokens; None: all.
        vision_width: of the hidden states of the vision encoder; 0 where it is not known.
        blocks: of the vision encoder, before whose input a method can prune; 0 where there are none such.
        attending_blocks: those of the blocks that attend to whole images, so that their attention can be read.
        at: where a method is moved to that would choose among what enters the language model: ``"encoder:8"`` is the
            input of the encoder's block 8, ``"layer:2"`` that of the language model's layer 2. `hidden_size` is then
            the width of what it sees there.
        heads: that queries have in the attention of the language model; 0 where it is not known.
    """

    name_or_path: str
    hidden_size: int
    layers: int
    lineage: tuple[str, ...] = ()
    revision: str = ""
    attention_layers: tuple[int, ...] | None = None
    vision_width: int = 0
    blocks: int = 0
    attending_blocks: tuple[int, ...] = ()
    at: str = ""
    heads: int = 0

    def inside_encoder(self, block: int) -> ModelFacts:
        """The same of a method that chooses among the hidden states that enter a block of the vision encoder."""
        return dataclasses.replace(self, hidden_size=self.vision_width, at=f"encoder:{block}")

    def inside_llm(self, layer: int) -> ModelFacts:
        """The same of a method that chooses among the hidden states that enter a layer of the language model."""
        return dataclasses.replace(self, at=f"layer:{layer}") if layer else self

    def readable_layer(self, layer: int, method: Method) -> int:
        """The first layer from `layer` on where the model gives the attention that a method reads.

        Raises:
            MethodError: where there is none.
        """
        known = self.attention_layers
        if known is None or not 0 <= layer < self.layers:
            return layer
        below, here = method.needs & Cue.of(Source.LAYER_BELOW), method.needs & Cue.of(Source.LAYER)
        rows = method.llm_readings if Cue.LLM_READINGS in method.needs else ()
        read = [attention_from(known, one) for one in rows]
        for candidate in range(layer, self.layers):
            apart = all(one < candidate - bool(below) for one in read)  # a row is not to be compared with itself
            if apart and (not below or candidate - 1 in known) and (not here or candidate in known):
                return candidate
        listed = ", ".join(map(str, known))
        raise MethodError(
            f"{method.name} reads the attention of the language model at layer {layer}, but from there on none of its "
            f"layers with attention ({listed}) can be read; give a lower layer."
        )

    @property
    def label(self) -> str:
        """What the model is called where that is passed on: not by the folder that it lies in here.

        One that was built in memory has no name.
        """
        name = self.name_or_path
        return (short_name(name) if Path(name).is_dir() else name) or "this model"


@dataclass(frozen=True)
class Method(ABC):
    """A pruning method: a frozen dataclass whose fields are its hyperparameters.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Largest(foveate.Method):
        ...     power: float = 2.0
        ...     def select(self, tokens, count):
        ...         norms = tokens.features.float().norm(p=self.power, dim=-1)
        ...         return foveate.Selection(foveate.selection.topk(norms, count, valid=tokens.valid))
        >>> with foveate.prune(model, Largest(power=1.0), keep=64) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> pruning.report().tokens
        64

    Subclasses set `provenance` and, where they need more than features, `needs`. One that prunes inside the LLM sets
    `where` and has a field `layer`, the zero-based layer whose input is shortened; one with several stages overrides
    `stages`, which alone says where a method prunes. Those that may leave an image without any token where they count
    (``keep="auto"``) set `may_drop_all`.
    """

    name: ClassVar[str] = ""
    where: ClassVar[Where] = Where.BEFORE_LLM  # of its only stage, for methods that do not override `stages`
    may_drop_all: ClassVar[bool] = False
    requires: ClassVar[str] = ""  # what has to be made for a model first
    instead: ClassVar[str] = "choose another method"  # the advice where a model cannot give what it needs
    refusals: ClassVar[tuple[str, ...]] = ()  # sentences with which it refuses images that it cannot choose from
    provenance: ClassVar[Provenance] = NO_PROVENANCE

    @final
    def __post_init__(self) -> None:
        check_fields(self, self.name or type(self).__name__)
        self.validate()

    def validate(self) -> None:  # noqa: B027 - most methods have no such settings
        """Raise MethodError for settings that do not go together, once each has been found to fit its own type."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("select", "counts"):
            own = vars(cls).get(name)
            if inspect.isfunction(own) and not hasattr(own, _SINGLE):  # a dataclass may make a class twice
                setattr(cls, name, _in_single_precision(own))

    @property
    def needs(self) -> frozenset[Cue]:
        """The cues that `select` reads besides the features."""
        return frozenset()

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        """What the cue ENCODER_READINGS shall hold, for methods that need it; wrappers hand on their method's."""
        return ()

    @property
    def llm_readings(self) -> tuple[int, ...]:
        """The zero-based LLM layers below the shortened one that LLM_READINGS or LLM_TRANSITIONS shall hold."""
        return ()

    @property
    def note(self) -> Note | None:
        """What users should know of how the method was bound, for those who have something to say."""
        return None

    @property
    def experts(self) -> ExpertCut | ExpertSkip | None:
        """Which experts tokens go past, for methods in an LLM that has them; None: none."""
        return None

    @property
    def guide(self) -> Guide | None:
        """The smaller model that reads each prompt first, for methods that read what it attends to; None: none."""
        return None

    @final
    def bind(self, facts: ModelFacts) -> Method:
        """This method made ready for one model; raises MethodError if it cannot be.

        Published settings that the user left alone take the authors' values for the model's family; then `load` runs.
        """
        return self.published_for(facts.lineage).load(facts)

    def load(self, facts: ModelFacts) -> Method:
        """Load weights and check shapes for one model, for methods that have to; raises MethodError if it cannot."""
        return self

    @final
    def published_for(self, lineage: Sequence[str]) -> Method:
        """This method with the authors' settings for a model family, where the user gave none of their own.

        Args:
            lineage: see `ModelFacts`.
        """
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        names = sorted(unset_settings(self))
        values = {name: published.on(lineage) for name in names if isinstance(published := fields[name], Published)}
        return dataclasses.replace(self, **values) if values else self

    def with_settings(self, **settings: Any) -> Method:
        """This method with some settings changed; published ones that the user left alone still follow the model.

        Raises:
            MethodError: for a setting that it does not have, or a value that it refuses.
        """
        known = [field.name for field in dataclasses.fields(self) if field.init]
        for name in settings:
            if name not in known:
                raise MethodError(f"{self.name} has no hyperparameter {name!r}{near_miss(name, known)}")
        unset = unset_settings(self)
        kept = [field.name for field in dataclasses.fields(self) if field.init and field.name not in unset]
        return type(self)(**{**{name: getattr(self, name) for name in kept}, **settings})

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        """Where it prunes in a model of so many `layers`, and what it leaves there where `budget` is asked of it.

        Methods that prune in several places override this; nothing else says where a method prunes. The places may
        depend on the model and on whether the budget goes by content, but not on how much it keeps.
        """
        if self.where is Where.INSIDE_LLM:
            return [Stage.inside_llm(self, getattr(self, "layer", -1), budget)]
        return [Stage(self, self.where, -1 if self.where is Where.BEFORE_ENCODER else 0, budget)]

    @final
    def places(self, layers: int = 32) -> tuple[Where, ...]:
        """Where it works in a model of so many `layers`, in the order of a forward, each place once.

        These are the places of its `stages`; and the inside of the LLM, too, where it changes attention or experts.
        """
        stages = self.stages(layers, Budget(1.0))
        found = {stage.where for stage in stages}
        methods = [stage.method for stage in stages]
        if any(one.bias is not None or one.experts is not None or one.edits(layers) for one in methods):
            found.add(Where.INSIDE_LLM)
        return tuple(where for where in Where if where in found)

    @property
    def bias(self) -> LogitBias | None:
        """What it adds to the attention logits of all layers; None for most. Only methods before the LLM may."""
        return None

    def edits(self, layers: int) -> Sequence[AttentionEdit]:
        """What it changes in the attention of a model's `layers`, whatever is pruned; asked of each stage's method."""
        return ()

    def check(self, grid: Grid, count: int) -> None:  # noqa: B027 - most methods take any image
        """Raise MethodError where `count` tokens of such an image or clip cannot be chosen, as `select` would.

        Servers ask before they take in an image, because by the time of `select` it runs together with others.
        """

    @property
    def counts_by_content(self) -> bool:
        """Whether `counts` has a rule of the method's own for ``keep="auto"``."""
        return type(self).counts is not Method.counts

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        """How many tokens of each pool to keep, by what it shows: (B,) long; None where a method has no rule for it.

        With ``keep="auto"`` it is asked before `select`, of the same tokens. A pool's count must not depend on the
        other pools of the batch; it is clamped to the number of tokens that are there and, unless a method
        `may_drop_all`, to 1. Methods before the LLM that do not override it keep as many tokens as differ, see
        `count_distinct` in `foveate.methods.toolkit`.
        """
        return None

    def scores(self, tokens: VisualTokens) -> Tensor | None:
        """What each token is worth by itself, for those who want to see it; `select` need not ask for it.

        By default it is the first of the method's cues that has one number for each token, such as the attention that
        it receives.

        Args:
            tokens: of which `select` chooses.

        Returns:
            (B, N), higher for better ones, anything on padding; None for a method that only compares tokens with each
            other.
        """
        known = (cue for cue in Cue if cue in self.needs and cue.axes == ("N",) and cue.kind is Kind.NUMBER)
        return next((tokens.cue(cue) for cue in known), None)

    @abstractmethod
    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        """Choose tokens of each pool.

        It runs without autocast, and `tokens` come as `VisualTokens.single` makes them, whatever the caller gave.

        Args:
            tokens: a padded batch of B pools.
            count: (B,) long, how many to keep of each; the returned mask has exactly that many true per row.
        """


_SINGLE = "_in_single_precision"  # marks what is wrapped already


def _in_single_precision(choose: Callable[..., Any]) -> Callable[..., Any]:
    """`select` or `counts` of a method, run in float32 whatever surrounds the call and whatever it is given."""
    chosen = full_precision(choose)

    def single(given: Any) -> Any:
        return given.single() if isinstance(given, VisualTokens) else given

    @functools.wraps(choose)
    def run(*args: Any, **kwargs: Any) -> Any:
        return chosen(*map(single, args), **{name: single(given) for name, given in kwargs.items()})

    setattr(run, _SINGLE, True)
    return run
