"""What ``--model_args`` says of pruning: a method with its hyperparameters and a budget, or a baseline.

The same words say, in the results that lmms-eval writes, how its answers were made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...budget import Budget
from ...config import PruningConfig
from ...errors import ConfigError, MethodError, explain_unknown_method, near_miss
from ...methods import get_method, method_names
from ...methods.toolkit.registry import method_class
from ...methods.toolkit.settings import UnfitError, from_text, settable
from ..runs import BLIND, DOWNSAMPLE, RANDOM, REFERENCES, UNPRUNED, Run

PRUNING = ("method", "keep", "config", "scope", "positions")
_BASELINES = (*REFERENCES, DOWNSAMPLE)  # what is no method of foveate.prune


@dataclass(frozen=True)
class PruningChoice:
    """How questions are answered.

    Attributes:
        run: as tables name it; its method is None, as `config` has it.
        config: for `foveate.prune`; None for the baselines, which are no methods of it.
    """

    run: Run
    config: PruningConfig | None


def split_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments about pruning, and all others."""
    method = given.get("method")
    own = set(PRUNING)
    if isinstance(method, str) and method in method_names():
        own |= settable(method_class(method)).keys()
    about = {name: value for name, value in given.items() if name in own}
    return about, {name: value for name, value in given.items() if name not in own}


def read_choice(given: Mapping[str, Any]) -> PruningChoice:
    """What the arguments about pruning ask for; nothing of it is nothing pruned.

    Args:
        given: of `split_arguments`; texts, or numbers as lmms-eval makes them of texts.

    Raises:
        FoveateError: for an unknown method, a value that cannot be, and where something is missing or contradicts.
    """
    if "config" in given:
        if others := [name for name in given if name != "config"]:
            raise ConfigError(f"config={given['config']} says what {', '.join(others)} says; leave one of them out.")
        config = PruningConfig.from_pretrained(str(given["config"]))
        keep = " + ".join(budget.label for budget in config.budgets)
        return PruningChoice(Run(config.label, keep), config)
    if given and "method" not in given:
        raise ConfigError(f"{', '.join(given)} is given without a method; give one, such as method=idpruner.")
    method = given.get("method", UNPRUNED)
    rest = {name: value for name, value in given.items() if name not in ("method", "keep")}
    if method in _BASELINES:
        return _read_baseline(str(method), given.get("keep"), rest)
    if not isinstance(method, str) or method not in method_names():
        known = [*method_names(), *_BASELINES]
        raise MethodError(explain_unknown_method(method, known))
    if "keep" not in given:
        raise ConfigError(f"method={method} needs a budget; give one, such as keep=0.25 or keep=64.")
    options: dict[str, Any] = {name: rest.pop(name) for name in ("scope", "positions") if name in rest}
    values = _hyperparameters(method, rest)
    config = PruningConfig(get_method(method, **values), given["keep"], **options)
    seed = values.pop("seed", 0) if method == RANDOM else None
    told = [f"{name}={value}" for name, value in {**values, **options}.items()]
    label = f"{method} ({', '.join(told)})" if told else method
    return PruningChoice(Run(label, config.budgets[0].label, seed=seed), config)


def _read_baseline(method: str, keep: Any, rest: Mapping[str, Any]) -> PruningChoice:
    if rest:
        raise ConfigError(f"method={method} has no {', '.join(rest)}; leave that out.")
    if method in REFERENCES:
        if keep is not None:
            wrong = "shows no picture" if method == BLIND else "keeps everything"
            raise ConfigError(f"method={method} {wrong}, but keep={keep} is given; leave out one of them.")
        return PruningChoice(Run(method), None)
    if keep is None:
        raise ConfigError(f"method={method} needs a budget; give one, such as keep=0.25 or keep=64.")
    budget = Budget(keep)
    if budget.by_content:
        raise ConfigError(
            f"method={method} cannot have keep={keep}: the size of a picture must be known before it is encoded; give "
            "a share, such as keep=0.25."
        )
    return PruningChoice(Run(method, budget.label), None)


def _hyperparameters(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    fields = settable(method_class(method))
    found = {}
    for name, value in given.items():
        if name not in fields:
            raise MethodError(f"{method} has no hyperparameter {name!r}{near_miss(name, fields)}")
        text = str(value).strip("'\"")
        try:
            found[name] = from_text(fields[name], text)
        except UnfitError as error:
            raise MethodError(f"{name}={text}: {name} of {method} is {error}.") from None
    return found


def read_number(name: str, value: Any, whole: bool = False) -> Any:
    """A number above 0 of ``--model_args``, where lmms-eval makes numbers of texts that are some.

    Args:
        name: of the argument.
        value: as given.
        whole: whether it must be a whole number.

    Raises:
        ConfigError: for anything else.
    """
    try:
        number = int(str(value)) if whole else float(str(value))
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        kind = "a whole number of at least 1" if whole else "a number above 0"
        raise ConfigError(f"{name}={value} is not {kind}; give one.")
    return number


def refuse_unknown(given: Iterable[str], method: str, known: Iterable[str]) -> None:
    """Raise ConfigError for arguments that neither the model nor the method has."""
    known = list(known)
    if method in method_names():
        known += settable(method_class(method))
    for name in given:
        raise ConfigError(f"--model_args has an unknown argument {name!r}{near_miss(name, known)}")
