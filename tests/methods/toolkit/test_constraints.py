"""Constraints of hyperparameters: declared in types, checked when a method is made, told as words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate import MethodError, Selection, VisualTokens
from foveate.methods import Method, get_method, method_names, published
from foveate.methods.toolkit.constraints import AtLeast, Between, Cosine, Layer, Layers, PositiveShare, Share, in_words
from foveate.methods.toolkit.published import unset_settings
from foveate.methods.toolkit.registry import method_class
from foveate.methods.toolkit.settings import settable


@dataclass(frozen=True)
class Toy(Method):
    """Has a field of each kind."""

    name = "toy"
    share: Share = 0.5
    cosine: Cosine | None = None
    power: Annotated[float, AtLeast(0)] = published(1.0, llava=2.0)
    number: Annotated[int, AtLeast(2)] = 2
    few: Annotated[int, Between(1, 3)] = 1
    layers: Layers | None = None
    pair: tuple[Layer, Layer] = (1, 2)
    choice: Literal["left", "right"] | None = None
    free: int | str = 0
    truth: bool = False
    text: str = ""
    plain: float = 0.0
    inner: Method | None = None
    positive: PositiveShare = 1.0

    def validate(self) -> None:
        if self.share == 1 and self.choice:
            raise MethodError("toy: share=1 leaves nothing to choose.")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"share": 1.7}, "toy: share=1.7 must be in [0, 1]."),
        ({"share": True}, "toy: share=True must be in [0, 1]."),
        ({"share": float("nan")}, "toy: share=nan must be in [0, 1]."),
        ({"share": None}, "toy: share=None must be in [0, 1]."),
        ({"cosine": -2}, "toy: cosine=-2 must be in [-1, 1]."),
        ({"power": float("inf")}, "toy: power=inf must be a finite number of at least 0."),
        ({"power": -1}, "toy: power=-1 must be a finite number of at least 0."),
        ({"number": 1}, "toy: number=1 must be a whole number of at least 2."),
        ({"number": 2.0}, "toy: number=2.0 must be a whole number of at least 2."),
        ({"few": 4}, "toy: few=4 must be a whole number in [1, 3]."),
        ({"layers": (3, 2)}, "toy: layers=(3, 2) must be rising layers, at least one."),
        ({"layers": ()}, "toy: layers=() must be rising layers, at least one."),
        ({"layers": (0, 2)}, "toy: layers=0 must be a whole number of at least 1."),
        ({"layers": 3}, "toy: layers=3 must be several values, such as (1, 2)."),
        ({"pair": (1, "2")}, "toy: pair='2' must be a whole number of at least 1."),
        ({"choice": "lefd"}, "toy: choice='lefd' is unknown; did you mean 'left'? Known: left, right."),
        ({"choice": np.array([1, 2])}, "toy: choice=array([1, 2]) is unknown. Known: left, right."),
        ({"pair": (1, 2, 3)}, "toy: pair=(1, 2, 3) must be two values."),
        ({"truth": "no"}, "toy: truth='no' must be True or False."),
        ({"truth": 1}, "toy: truth=1 must be True or False."),
        ({"text": 5}, "toy: text=5 must be a text."),
        ({"plain": True}, "toy: plain=True must be a number."),
        ({"free": 0.5}, "toy: free=0.5 must be a whole number or a text."),
        ({"free": True}, "toy: free=True must be a whole number or a text."),
        ({"inner": "divprune"}, "toy: inner='divprune' must be a Method."),
        ({"positive": 0}, "toy: positive=0 must be above 0."),
        ({"power": 10**400}, f"toy: power={10**400} must be a finite number of at least 0."),
        ({"share": 1, "choice": "left"}, "toy: share=1 leaves nothing to choose."),
    ],
)
def test_sentences(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MethodError) as caught:
        Toy(**fields)
    assert str(caught.value) == sentence


def test_what_fits_is_kept_as_it_is_and_lists_become_tuples() -> None:
    toy = Toy(share=0, cosine=-1, power=3, number=7, few=3, layers=[1, 5], choice="right", free="x")  # type: ignore[arg-type]
    assert toy.layers == (1, 5) and hash(toy) == hash(Toy(0, -1, 3, 7, 3, (1, 5), (1, 2), "right", "x"))
    assert Toy().published_for(("llava",)).power == 2.0  # type: ignore[attr-defined]


def test_scalars_of_numpy_and_pytorch_are_plain_numbers() -> None:
    given: dict[str, Any] = {
        "share": np.float32(0.7),
        "cosine": torch.tensor(0.25),
        "number": np.int64(3),
        "layers": [np.int64(1), torch.tensor(2)],
        "free": np.str_("x"),
        "truth": np.bool_(True),
        "power": np.float64(2.0),
    }
    plain: dict[str, Any] = {
        "share": 0.7,
        "cosine": 0.25,
        "number": 3,
        "layers": (1, 2),
        "free": "x",
        "truth": True,
        "power": 2.0,
    }
    assert repr(Toy(**given)) == repr(Toy(**plain))
    assert unset_settings(Toy(**given)) == frozenset() and unset_settings(Toy()) == {"power"}


@pytest.mark.parametrize("name", method_names())
def test_no_field_of_any_method_takes_what_its_type_is_not(name: str) -> None:
    for field, hint in settable(method_class(name)).items():
        for value in (object(), {}, (), [], b"a", 1j, torch.ones(2), np.ones(2), 10**400, float("nan")):
            if isinstance(value, int) and "int" in str(hint):
                continue
            with pytest.raises(MethodError):
                get_method(name, **{field: value})
        if "bool" in str(hint):
            for value in ("no", 0, 1, None):
                with pytest.raises(MethodError, match="must be True or False"):
                    get_method(name, **{field: value})


def test_in_words() -> None:
    told = {name: in_words(Toy, name) for name in ("share", "cosine", "power", "few", "layers", "choice", "free")}
    assert told == {
        "share": "in [0, 1]",
        "cosine": "in [-1, 1]",
        "power": "at least 0",
        "few": "in [1, 3]",
        "layers": "each at least 1, rising",
        "choice": "",
        "free": "",
    }
