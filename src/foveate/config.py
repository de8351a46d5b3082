"""PruningConfig: all that `foveate.prune` is told beside the model, as data that can be saved and sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from .budget import Budget, Conversation, ScopeLike, common_scope
from .errors import ConfigError, FoveateError, near_miss
from .methods import Method, get_method
from .methods.toolkit.settings import method_data, method_of
from .models.adapter import MOST_QUERIES, check_queries
from .runtime.planner import Composition, KeepLike, MethodLike, compose, pair_methods
from .runtime.seams.before_llm import Positions

FILE_NAME = "foveate_config.json"
VERSION = 1  # of the data; rises when older foveate could not read it
_EXAMPLE = '{"method": "idpruner", "keep": 0.25}'


@dataclass(frozen=True, eq=False)
class PruningConfig:
    """A method, its hyperparameters and a budget, as one object that `foveate.prune` takes.

    Examples:
        >>> config = foveate.PruningConfig(foveate.get_method("idpruner", balance=0.7), keep=0.1)
        >>> config.to_dict()
        {'version': 1, 'method': {'name': 'idpruner', 'balance': 0.7}, 'keep': 0.1}
        >>> foveate.PruningConfig.from_dict({"method": "divprune", "keep": "25%"}).keep
        0.25

    The same data configures the command line (``--config``) and a vLLM server
    (``--hf-overrides '{"foveate": {...}}'``). Two configurations are equal where their data is.

    Args:
        method: a method's name or instance, a list of them, or a `compose`; kept as instances.
        keep: how much of each image to keep, see `Budget`; one value for each method of a list.
        scope: as for `foveate.prune`; None is the scope of a `Budget` given as `keep`, else ``"image"``.
        positions: as for `foveate.prune`.
        encoder_queries: as for `foveate.prune`.

    Raises:
        FoveateError: for a method, budget or option that cannot be.
    """

    method: MethodLike | Sequence[str | Method] = "idpruner"
    keep: KeepLike | Sequence[KeepLike] = 0.25
    scope: ScopeLike | None = None
    positions: Positions = "original"
    encoder_queries: int = field(default=MOST_QUERIES)

    def __post_init__(self) -> None:
        method, keep = self.method, self.keep
        scope = common_scope(keep if isinstance(keep, (list, tuple)) else [keep], self.scope)
        found: Any
        kept: Any
        if isinstance(method, Composition):
            found, kept = method, method.check(Budget(keep, scope)).keep  # type: ignore[arg-type]
        else:
            pairs = [(get_method(one), Budget(amount, scope).keep) for one, amount in pair_methods(method, keep)]
            several = isinstance(method, (list, tuple))
            found = tuple(one for one, _ in pairs) if several else pairs[0][0]
            kept = tuple(amount for _, amount in pairs) if isinstance(keep, (list, tuple)) else pairs[0][1]
        if self.positions not in get_args(Positions):
            raise ConfigError(f"positions={self.positions!r} is unknown; use 'original' or 'compact'.")
        check_queries(self.encoder_queries)
        for name, value in (("method", found), ("keep", kept), ("scope", scope)):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningConfig):
            return NotImplemented
        return self is other or self._data() == other._data()

    def __hash__(self) -> int:
        return hash(_hashable(self._data()))

    def _data(self) -> Any:
        """What two equal configurations share; settings that follow the model differ from those that are given."""
        try:
            return self.to_dict()
        except FoveateError:  # something in memory, which is like itself alone
            return id(self)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What is kept: one budget, or one for each method of a list."""
        keep: Any = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        return tuple(Budget(one, self.scope) for one in keep)

    @property
    def label(self) -> str:
        """The methods by name, ``idpruner`` or ``divprune + fastv``."""
        methods: Any = getattr(self.method, "methods", self.method)
        return " + ".join(one.name for one in (methods if isinstance(methods, tuple) else (methods,)))

    def arguments(self) -> dict[str, Any]:
        """The arguments of `foveate.prune` that this configuration stands for, `model` excepted."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """This configuration as JSON data, without what has its default.

        Returns:
            ``version`` of the data; ``method``: a name, ``{"name": ..., **hyperparameters}``, a list of these, or
            ``{"compose": [...], "ratio": ...}``; ``keep``: a number, ``"auto"`` or ``"auto:floor=0.2"``, or a list of
            these; and ``scope``, ``positions`` and ``encoder_queries`` where they are not the defaults.

        Raises:
            MethodError: for a method that is not registered, and for a hyperparameter that is held in memory.
        """
        method, keep = self.method, self.keep
        told: Any
        if isinstance(method, Composition):
            told = {"compose": [method_data(one) for one in method.methods], "ratio": method.ratio}
        elif isinstance(method, tuple):
            told = [method_data(one) for one in method]
        else:
            assert isinstance(method, Method)  # since __post_init__
            told = method_data(method)
        data = {"version": VERSION, "method": told, "keep": list(keep) if isinstance(keep, tuple) else keep}
        usual = {"scope": "image", "positions": "original", "encoder_queries": MOST_QUERIES}
        rest = {name: getattr(self, name) for name in usual} | {"scope": _scope_data(self.scope)}
        return data | {name: value for name, value in rest.items() if value != usual[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningConfig:
        """The configuration of such data as `to_dict` returns; keys that are left out have their defaults.

        Raises:
            FoveateError: for an unknown key, method or hyperparameter, a value that cannot be, and for data that a
                newer foveate wrote.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"a pruning configuration is a mapping such as {_EXAMPLE}, not {data!r}.")
        check_version(data)
        known = ("version", "method", "keep", "scope", "positions", "encoder_queries")
        for key in data:
            if key not in known:
                raise ConfigError(f"a pruning configuration has no key {key!r}{near_miss(str(key), known)}")
        told: Any = {name: data[name] for name in known[2:] if name in data}
        if "method" in data:
            told["method"] = _method(data["method"])
        if isinstance(data.get("scope"), Mapping):
            told["scope"] = scope_of(data["scope"])
        return cls(**told)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``foveate_config.json`` into a folder, such as a checkpoint's, and return its path.

        Raises:
            ConfigError: where it cannot be written.
            MethodError: as of `to_dict`.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        path = Path(folder) / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # the latter of a name that no file can have
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot write {path} ({why}); give another folder.") from None
        return path

    @classmethod
    def from_pretrained(cls, path: str | Path) -> PruningConfig:
        """Read a configuration from a folder that holds ``foveate_config.json``, or from a JSON file.

        Raises:
            FoveateError: where there is none, and as of `from_dict`.
        """
        return cls.from_dict(read_json(Path(path)))


def read_json(path: Path) -> Any:
    """The data in a JSON file or of the configuration in a folder, strictly: no key twice, no numbers that are none.

    Raises:
        ConfigError: where there is no such file, or it holds something else.
    """
    try:
        path = path / FILE_NAME if path.is_dir() else path
        text = path.read_text(encoding="utf-8-sig")  # some editors begin files with a mark
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text, but a pruning configuration is JSON such as {_EXAMPLE}.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"no pruning configuration can be read at {path} ({why}); write one with save_pretrained."
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); write it as {_EXAMPLE}.") from None


def _hashable(data: Any) -> Any:
    """JSON data as tuples; equal numbers stay equal, whether they are whole or not."""
    if isinstance(data, dict):
        return frozenset((key, _hashable(value)) for key, value in data.items())
    return tuple(map(_hashable, data)) if isinstance(data, list) else data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} comes twice")
        found[key] = value
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")


def check_version(data: Mapping[str, Any]) -> None:
    """Raise ConfigError for the data of a configuration that this foveate is too old to read."""
    version = data.get("version", VERSION)
    if type(version) is not int or version < 1:
        raise ConfigError(f"version={version!r} is not a version of pruning configurations; leave it out, or write 1.")
    if version > VERSION:
        raise ConfigError(
            f"this pruning configuration has version {version}, and this foveate reads up to {VERSION}; update foveate."
        )


def _method(data: Any) -> Any:
    """A method, a tuple of them or a composition, from data."""
    if isinstance(data, (list, tuple)):
        return tuple(method_of(one) for one in data)
    if not isinstance(data, Mapping) or "compose" not in data:
        return method_of(data)
    for key in data:
        if key not in ("compose", "ratio"):
            raise ConfigError(f"a composition has no key {key!r}{near_miss(str(key), ('compose', 'ratio'))}")
    if not isinstance(data["compose"], (list, tuple)):
        raise ConfigError(f'compose={data["compose"]!r} is not a list of methods, such as ["divprune", "fastv"].')
    return compose(*map(method_of, data["compose"]), **({"ratio": data["ratio"]} if "ratio" in data else {}))


def _scope_data(scope: Any) -> Any:
    """A scope as JSON data: a name, or a conversation with its decay."""
    if not isinstance(scope, Conversation):
        return scope
    return "conversation" if scope == Conversation() else {"conversation": {"decay": scope.decay}}


def scope_of(data: Mapping[str, Any]) -> Conversation:
    """The scope of such data as ``{"conversation": {"decay": 0.5}}``.

    Raises:
        FoveateError: for anything else.
    """
    told = data.get("conversation")
    if list(data) != ["conversation"] or not isinstance(told, Mapping) or list(told) != ["decay"]:
        fix = 'write "conversation" or {"conversation": {"decay": 0.5}}'
        raise ConfigError(f"scope={dict(data)!r} is unknown; {fix}.")
    return Conversation(told["decay"])
