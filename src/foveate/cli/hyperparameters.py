"""What commands are told of methods: ``--set key=value`` for a hyperparameter, ``--config FILE`` for all at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import near_miss
from .early import complete_method, split_setting
from .errors import InputError

if TYPE_CHECKING:
    from ..config import PruningConfig
    from ..methods import Method

_FEW = 4  # methods that a message names
SETTINGS = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A hyperparameter of the method; give the option again for more."),
]
CONFIG = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A foveate_config.json, or its folder: method, hyperparameters and budget."),
]
METHOD = Annotated[
    str | None,
    typer.Option(
        help="A pruning method; see `foveate methods`.", show_default="idpruner", autocompletion=complete_method
    ),
]
KEEP = Annotated[str | None, typer.Option(help="A percentage, a fraction, a token count, or auto.", show_default="25%")]
METHODS = Annotated[
    str | None,
    typer.Option(
        "--methods",
        "--method",
        help="Pruning methods, separated by commas; see `foveate methods`.",
        show_default="idpruner",
        autocompletion=complete_method,
    ),
]
KEEPS = Annotated[
    str | None,
    typer.Option(
        help="Budgets, separated by commas: a percentage, a fraction, a token count, or auto.", show_default="25%"
    ),
]
SCOPE = Annotated[
    str | None,
    typer.Option(
        help="One budget for each image, frame (of a clip), prompt, or conversation (a prompt, newer pictures more).",
        show_default="image",
    ),
]


def config_at(config: Path | None, beside: dict[str, object]) -> PruningConfig | None:
    """The configuration that ``--config`` names, if it is given.

    Args:
        config: the file or folder.
        beside: the options that it takes the place of, by name; None or an empty list where they were not given.

    Raises:
        ConfigError: for a file that is none.
        InputError: where one of the others is given, too.
    """
    if config is None:
        return None
    for option, value in beside.items():
        if value is not None and value != []:
            raise InputError(f"--config {config} says what {option} says; leave one of them out.")
    from ..config import PruningConfig

    return PruningConfig.from_pretrained(config)


def configure_methods(names: Sequence[str], settings: Sequence[str]) -> list[Method]:
    """The methods called `names`, each with those of the ``key=value`` settings that it has a field for.

    Raises:
        MethodError: for an unknown method, or a value that a method refuses.
        InputError: for a setting that is not ``key=value``, that no method has, or whose value is of another type.
    """
    from ..methods import get_method

    return [get_method(name, **values) for name, values in hyperparameters(names, settings).items()]


def hyperparameters(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each of the methods called `names` the values of those settings that it has a field for.

    Raises:
        MethodError: for an unknown method.
        InputError: for a setting that is not ``key=value``, that no method has, or whose value is of another type.
    """
    from ..methods.toolkit.registry import method_class
    from ..methods.toolkit.settings import UnfitError, from_text, settable

    given: dict[str, str] = {}
    for key, text in map(split_setting, settings):
        if key in given:
            raise InputError(f"--set {key}: it is given twice, as {given[key]} and as {text}; leave one of them out.")
        given[key] = text
    hints = {name: settable(method_class(name)) for name in names}
    known = {key for fields in hints.values() for key in fields}
    for key in given:
        if key not in known:
            hint = near_miss(key, known) if known else ": there is none to set."
            whose = " and ".join(names)
            if len(names) > _FEW:  # whose names and hyperparameters fill a page
                whose = f"the {len(names)} methods"
                hint = f"{hint.split(' Known:')[0]} `foveate methods NAME` lists those of a method."
            raise InputError(f"--set: {whose} {'has' if len(names) == 1 else 'have'} no {key!r}{hint}")
    found: dict[str, dict[str, Any]] = {}
    for name, fields in hints.items():
        found[name] = {}
        for key, text in given.items():
            if key not in fields:
                continue
            try:
                found[name][key] = from_text(fields[key], text)
            except UnfitError as error:
                raise InputError(f"--set {key}={text}: {key} of {name} is {error}.") from None
    return found
