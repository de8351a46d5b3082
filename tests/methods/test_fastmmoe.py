"""FastMMoE's merging and pruning, against numbers worked out by hand and a slow form."""

import pytest
import torch

import foveate
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.methods.toolkit.interventions import ExpertCut
from foveate.tokens import Grid, VisualTokens

# Three groups of three, one of a single token. The router treats the first group alike, up to 0.8 the second.
ROUTER = [[0.6, 0.4, 0], [0.6, 0.4, 0], [0.6, 0.4, 0], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, 1], [1, 0, 0]]
ROUTER += [[0, 1, 0], [0.2, 0.3, 0.5]]
ATTENTION = torch.tensor([0.1, 0.2, 0.1, 0.9, 0.0, 0.3, 0.2, 0.8, 0.5, 0.4])
FEATURES = torch.tensor([[3.0, 0], [0, 4], [0, 0], *[[float(i), 1] for i in range(3, 10)]])


def image(count=10):
    logits = (torch.tensor(ROUTER) + 1e-30).log()
    cues = {"router_logits": logits[:count], "llm_attention": ATTENTION[:count]}
    return VisualTokens.of(FEATURES[:count], Grid(1, count), **cues)


def select(count, **fields):
    return get_method("fastmmoe", **fields).select(image(), torch.tensor([count]))


def test_groups_that_the_router_treats_alike_merge():
    """Redundancies are 1, 0.805, 0.577 and (a single token) 0; importances 4/15, 4/5, 1 and 4/5 of the largest.

    With balance 1/2 the scores are 0.367, 0.002, -0.212 and -0.4: the first group merges, then the second.
    """
    one = select(5, merge=0.25)  # floor(0.25 * 5) = 1 group
    assert one.keep[0].nonzero().flatten().tolist() == [0, 3, 7, 8, 9]
    assert one.target[0].tolist() == [0, 0, 0, 3, -1, -1, -1, 7, 8, 9]
    # The mean of (3, 0), (0, 4) and (0, 0) is (1, 4/3) of length 5/3; the longest of them has length 4.
    merged = one.merged(image().features)[0]
    assert torch.allclose(merged[0], torch.tensor([4 * 0.6, 4 * 0.8]))
    assert torch.equal(merged[[3, 7, 8, 9]], FEATURES[[3, 7, 8, 9]])
    mean = select(5, merge=0.25, merging="mean").merged(image().features)[0]
    assert torch.allclose(mean[0], torch.tensor([1, 4 / 3]))
    two = select(5, merge=0.4)
    assert two.keep[0].nonzero().flatten().tolist() == [0, 3, 7, 8, 9]
    assert two.target[0].tolist() == [0, 0, 0, 3, 3, 3, -1, 7, 8, 9]


def test_attention_and_the_router_alone():
    by_attention = select(5, merge=0.25, balance=0.0)  # the least important group is the first one here, too
    assert by_attention.target[0, :3].tolist() == [0, 0, 0]
    by_router = select(4, merge=0.5, balance=1.0)
    assert by_router.target[0, :6].tolist() == [0, 0, 0, 3, 3, 3]
    assert select(4, merge=0.0).keep[0].nonzero().flatten().tolist() == [3, 7, 8, 9]


def test_fewer_groups_merge_where_too_few_tokens_lie_outside():
    """Of ten tokens nine cannot be left if a group of three becomes one."""
    assert select(9, merge=1.0).target is None
    eight = select(8, merge=1.0)
    assert eight.keep.sum() == 8 and eight.target[0, :3].tolist() == [0, 0, 0]
    everything = select(10, merge=1.0)
    assert everything.target is None and everything.keep.all()


@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_form(seed):
    random = torch.Generator().manual_seed(seed)
    router, attention = torch.randn(29, 6, generator=random), torch.rand(29, generator=random)
    tokens = VisualTokens.of(torch.randn(29, 4, generator=random), Grid(1, 29))
    tokens = VisualTokens(tokens.features, tokens.grids, router_logits=router[None], llm_attention=attention[None])
    keep = get_method("fastmmoe", merge=0.3, window=4).select(tokens, torch.tensor([13])).keep[0]
    probability, groups = router.softmax(-1), [list(range(i, min(i + 4, 29))) for i in range(0, 29, 4)]
    largest = max(float(attention[group].mean()) for group in groups)
    scores = []
    for group in groups:
        mean = probability[group].mean(0)
        cosines = [torch.cosine_similarity(probability[i], mean, 0).item() for i in group]
        redundancy = sum(cosines) / len(group) if len(group) > 1 else 0
        scores.append(0.5 * redundancy - 0.5 * float(attention[group].mean()) / largest)
    merged = sorted(range(8), key=lambda g: -scores[g])[:3]
    outside = [i for g in range(8) if g not in merged for i in groups[g]]
    alone = sorted(outside, key=lambda i: -attention[i])[:10]
    assert keep.nonzero().flatten().tolist() == sorted(alone + [groups[g][0] for g in merged])


def test_layers_shrink_an_image_by_the_same_factor():
    method, budget = get_method("fastmmoe"), foveate.Budget(0.91**3)
    stages = method.stages(48, budget)
    assert [stage.layer for stage in stages] == [5, 8, 12]
    assert [stage.budget.count(1000) for stage in stages] == [910, 828, 754]
    assert [stage.layer for stage in get_method("fastmmoe").stages(4, budget)] == [1]


def test_what_is_left_of_experts():
    assert get_method("fastmmoe").experts == ExpertCut(2, 0.5, "number")
    assert get_method("fastmmoe", expert_share=1.0).experts is None
    assert [ExpertCut(0, 0.5, "number").count_kept(n) for n in (1, 2, 5, 8)] == [1, 1, 3, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balance": 2}, r"balance=2 must be in \[0, 1\]"),
        ({"merge": -1}, r"merge=-1 must be in \[0, 1\]"),
        ({"window": 0}, "window=0 must be a whole number of at least 1"),
        ({"merging": "median"}, "merging='median' is unknown"),
        ({"expert_share": 0}, "leaves visual tokens no expert"),
        ({"expert_reading": "depth"}, "'depth' is unknown"),
        ({"layers": (3, 2)}, "must be rising layers"),
        ({"layers": (0,)}, "at least 1"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(MethodError, match=message):
        get_method("fastmmoe", **fields)


def test_layers_that_a_model_lacks():
    for fields in ({"layers": (1, 4)}, {"expert_layer": 4}):
        with pytest.raises(MethodError, match="layer=4, but toy has 4 layers"):
            get_method("fastmmoe", **fields).bind(ModelFacts("toy", 8, 4))
