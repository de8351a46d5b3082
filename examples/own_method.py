"""A method of one's own in twenty lines: the tokens with the largest features. Then it runs like any other.

Usage: python examples/own_method.py
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

import foveate
from foveate.data import answer
from foveate.methods import Method, Provenance, register_method
from foveate.methods.toolkit import AtLeast
from foveate.selection import topk
from foveate.testbed import load_shipped, scenes
from foveate.tokens import Selection, VisualTokens


@register_method("norm")
@dataclass(frozen=True)
class Norm(Method):
    """The tokens with the largest `power`-norm."""

    power: Annotated[float, AtLeast(0)] = 2.0

    provenance = Provenance(paper="none (example)", licence="none")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        scores = tokens.features.float().norm(p=self.power, dim=-1)
        return Selection(topk(scores, count, valid=tokens.valid))


if __name__ == "__main__":
    model, processor = load_shipped()
    right = {"norm": 0, "idpruner": 0}
    asked = [(scene.image, question) for scene in scenes()[:3] for question in scene.questions]
    for name in right:
        with foveate.prune(model, name, keep=0.1):
            for image, question in asked:
                right[name] += answer(model, processor, image, question.text) == question.answer
    print({name: f"{count} of {len(asked)} right" for name, count in right.items()})
