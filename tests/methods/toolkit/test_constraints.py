"""Constraints of hyperparameters: declared in types, checked when a method is made, told as words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from torch import Tensor

from foveate import MethodError, Selection, VisualTokens
from foveate.methods import Method, published
from foveate.methods.toolkit.constraints import AtLeast, Between, Cosine, Layer, Layers, Share, in_words


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
