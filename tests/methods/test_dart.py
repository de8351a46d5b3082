"""DART: the toy with text pivots, an implementation over lists, and a live model."""

import pytest
import torch
from torch.nn.functional import normalize

import foveate
import tiny_models as zoo
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.methods.dart import with_least_alike
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, kept, text

# What needs no model: pivots by their own states, and none from the text.
ALONE = {"pivots_by": "states", "text_pivots": 0, "normed": False}


def naive(features, count, pivots):
    unit = [row / row.norm() for row in features.double()]
    order = sorted(range(len(unit)), key=lambda i: -features[i].abs().sum().item())
    chosen = order[: min(pivots, count)]
    references, left = list(chosen), count - len(chosen)
    for place, pivot in enumerate(references):
        share = left // len(references) + (place < left % len(references))
        others = sorted((i for i in range(len(unit)) if i not in chosen), key=lambda i: float(unit[i] @ unit[pivot]))
        chosen += others[:share]
    return sorted(chosen)


def test_the_toy_with_pivots_in_the_text():
    visual = FEATURES.abs().sum(1).argsort(descending=True)[:4]
    assert visual.sort().values.tolist() == [8, 17, 26, 35]
    references = normalize(torch.cat([FEATURES[visual], text(4)]), dim=-1)
    keep = torch.zeros(1, 36, dtype=torch.bool)
    keep[0, visual] = True
    cosines = (references @ normalize(FEATURES, dim=-1).T)[None]
    out = with_least_alike(cosines, keep, torch.ones_like(keep), torch.tensor([16]))
    expected = [0, 6, 8, 9, 13, 14, 15, 16, 17, 18, 20, 22, 23, 24, 25, 26, 29, 31, 33, 35]
    assert out[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("pivots", [1, 4, 8])
@pytest.mark.parametrize("count", [1, 4, 8, 19, 30])
def test_lists(count, pivots):
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(count))
    assert kept(get_method("dart", pivots=pivots, **ALONE), VisualTokens.of(features, Grid(5, 6)), count) == naive(
        features, count, pivots
    )


def test_equal_tokens_by_index():
    assert kept(get_method("dart", **ALONE), VisualTokens.of(torch.ones(20, 3), Grid(4, 5)), 13) == list(range(13))


def test_a_live_model_cached_or_not():
    tiny = zoo.llava()
    batch = zoo.inputs(tiny, [[zoo.picture()], [zoo.picture(seed=1)]])
    with foveate.prune(tiny.model, "dart", keep=0.5):
        said = [
            tiny.model.generate(
                **batch, max_new_tokens=5, do_sample=False, use_cache=cache, suppress_tokens=list(tiny.visual_ids)
            )
            for cache in (True, False)
        ]
    assert torch.equal(*said)


def test_layers_that_are_not_there():
    with pytest.raises(MethodError, match="whole number of at least 0"):
        get_method("dart", layer=-1)
    with pytest.raises(MethodError, match=r"no layer lies below layer 0.*give a higher layer="):
        get_method("dart", layer=0).bind(ModelFacts("toy", 8, 4))
    assert get_method("dart", layer=0, **ALONE).bind(ModelFacts("toy", 8, 4)).needs == frozenset()
