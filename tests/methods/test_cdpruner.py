"""CDPruner: the toy, and determinants computed anew at every step."""

from dataclasses import dataclass

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.cdpruner import CDPruner
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import RELEVANCE, kept, toy
from selection import oracles


def naive(features, text, count, sign):
    cosine = torch.nn.functional.cosine_similarity
    relevance = [sign * sum(float(cosine(v, t, 0)) for t in text) / len(text) for v in features.double()]
    return oracles.dpp(features, torch.tensor(relevance), count).nonzero().flatten().tolist()


@dataclass(frozen=True)
class Given(CDPruner):
    """With the toy's relevance, which is that of no text."""

    def relevance(self, tokens):
        return RELEVANCE[None]


def test_the_toy():
    order = [29, 7, 3, 33, 14, 10, 18, 26, 22, 25, 21, 32]
    for count in (1, 5, 12):
        assert kept(Given(), toy(), count) == sorted(order[:count])


@pytest.mark.parametrize("sign", ["plus", "minus"])
@pytest.mark.parametrize("seed", range(4))
def test_lists(sign, seed):
    generator = torch.Generator().manual_seed(seed)
    features, text = torch.randn(15, 8, generator=generator), torch.randn(3, 8, generator=generator)
    tokens = VisualTokens.of(features, Grid(3, 5), text_embeddings=text)
    for count in (1, 3, 7):
        expected = naive(features, text.double(), count, {"plus": 1, "minus": -1}[sign])
        assert kept(get_method("cdpruner", sign=sign), tokens, count) == expected


def test_orthogonal_tokens_are_ranked_by_relevance():
    text = torch.tensor([[5.0, 1, 4, 2, 3]])
    tokens = VisualTokens.of(torch.eye(5), Grid(1, 5), text_embeddings=text)
    assert kept(get_method("cdpruner"), tokens, 3) == [0, 2, 4]
    assert kept(get_method("cdpruner", sign="minus"), tokens, 3) == [1, 3, 4]


def test_without_text_diversity_decides():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    tokens = VisualTokens.of(features, Grid(1, 3), text_embeddings=torch.empty(0, 2))
    assert kept(get_method("cdpruner"), tokens, 2) == [0, 2]
