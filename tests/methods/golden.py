"""The golden data of the selection rules (tests/golden_files/methods.npz): what the authors' released code keeps."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.methods import ModelFacts
from foveate.models import supported_models
from foveate.tokens import Grid

FILE = Path(__file__).parents[1] / "golden_files" / "methods.npz"


@dataclass
class Case:
    """One case: `given` (part `in`), `settings` (`par`) and `result` (`out`), by name; see the data's README."""

    method: str
    kind: str
    name: str
    given: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, np.ndarray] = field(default_factory=dict)
    result: dict[str, np.ndarray] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """An input as a tensor."""
        return torch.from_numpy(self.given[name].copy())

    @property
    def grid(self) -> Grid:
        """The image's layout in tokens."""
        *frames, rows, columns = self.given["grid"].tolist()
        return Grid(rows, columns, *frames)

    @property
    def count(self) -> int:
        """K, the number of tokens asked for."""
        return int(self.settings["keep"])

    @property
    def kept(self) -> list[int]:
        """The indices that the released code keeps, rising."""
        return self.result["keep"].tolist()


@functools.cache
def _all() -> dict[tuple[str, str], list[Case]]:
    found: dict[tuple[str, str, str], Case] = {}
    with np.load(FILE, allow_pickle=False) as data:
        for key in data.files:
            method, kind, name, part, what = key.split("/")
            case = found.setdefault((method, kind, name), Case(method, kind, name))
            {"in": case.given, "par": case.settings, "out": case.result}[part][what] = data[key]
    by_kind = defaultdict(list)
    for case in found.values():
        by_kind[case.method, case.kind].append(case)
    return dict(by_kind)


def kinds() -> list[tuple[str, str]]:
    """All pairs of a method and a kind of model that the file has."""
    return list(_all())


def all_cases() -> list[Case]:
    """Everything in the file, `counts` and `lists` too."""
    return [case for found in _all().values() for case in found]


def cases(method: str, kind: str) -> list[Any]:
    """The cases of a method on a kind of model, as parameters of a test; `counts` and `lists` are none."""
    found = [case for case in _all()[method, kind] if case.name not in ("counts", "lists")]
    assert found
    return [pytest.param(case, id=f"{kind}-{case.name}") for case in found]


def extra(method: str, kind: str, name: str) -> Case:
    """`counts` or `lists` of a method."""
    return next(case for case in _all()[method, kind] if case.name == name)


def facts(kind: str, layers: int = 32, width: int = 16) -> ModelFacts:
    """What a method is told of a model of this kind when it is bound."""
    family = {"llava-v1": "llava", "llava-v2": "llava", "any": "llava"}.get(
        kind, kind.replace("-", "_").replace(".", "_")
    )
    lineages = {row.model_type: row.lineage for row in supported_models()}
    return ModelFacts("", width, layers, lineages.get(family, (family,)))
