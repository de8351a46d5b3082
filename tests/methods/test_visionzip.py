"""VisionZip: the toy's groups and lengths, and the merges by hand."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen, kept, toy


def test_the_toy():
    tokens = toy()
    selection = chosen(get_method("visionzip", contextual=1 / 3), tokens, 9)
    assert selection.keep[0].nonzero().flatten().tolist() == [0, 1, 4, 7, 10, 13, 15, 25, 33]
    joined = [(selection.target[0] == target).sum().item() - 1 for target in (0, 15, 25)]
    assert joined == [8, 17, 2]
    lengths = selection.merged(tokens.features)[0, [0, 15, 25]].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([5.5402, 5.8187, 6.6315]).double(), atol=1e-4, rtol=0)


def test_sum_and_mean_by_hand():
    # Token 1 is dominant; 0 and 3 are targets (stride 4 // 2 = 2 among 0, 2, 3, 4); 2 joins 0 and 4 joins 3.
    features = torch.tensor([[2.0, 0], [9, 9], [4, 0], [0, 6], [0, 2]])
    attention = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4])
    tokens = VisualTokens.of(features, Grid(1, 5), encoder_attention=attention)
    for rule, expected in (("sum", [[6.0, 0], [9, 9], [0, 8]]), ("mean", [[3.0, 0], [9, 9], [0, 4]])):
        method = get_method("visionzip", contextual=0.7, rule=rule, features="projected")
        selection = chosen(method, tokens, 3)
        assert selection.target[0].tolist() == [0, 1, 0, 3, 3]
        assert selection.merged(features[None])[0, selection.keep[0]].tolist() == expected


@pytest.mark.parametrize("count,contextual", [(64, 10), (128, 20), (192, 30), (32, 5), (1, 0)])
def test_the_papers_shares(count, contextual):
    torch.manual_seed(0)
    features = torch.randn(576, 4)
    cues = {"encoder_attention": torch.rand(576), "encoder_features": features}
    selection = chosen(get_method("visionzip"), VisualTokens.of(features, Grid(24, 24), **cues), count)
    best = cues["encoder_attention"].topk(count - contextual).indices
    assert selection.keep.sum() == count and selection.keep[0, best].all()
    assert selection.target.unique().numel() == (count + (contextual == 0))  # all tokens flow where there is a target


def test_without_contextual_tokens():
    method = get_method("visionzip", contextual=0)
    assert "ENCODER_FEATURES" not in {cue.name for cue in method.needs}
    assert kept(method, toy(), 12) == [1, 4, 7, 10, 13, 16, 19, 22, 24, 27, 30, 33]
    with pytest.raises(MethodError, match=r"contextual=1.5 must be in \[0, 1\]"):
        get_method("visionzip", contextual=1.5)


def test_a_rest_of_equals_joins_the_first_target():
    features = torch.ones(8, 3)
    attention = torch.tensor([0.0, 0, 0, 9, 0, 0, 0, 0])
    tokens = VisualTokens.of(features, Grid(2, 4), encoder_attention=attention, encoder_features=features)
    selection = chosen(get_method("visionzip", contextual=0.7), tokens, 3)
    assert selection.keep[0].nonzero().flatten().tolist() == [0, 3, 4]
    assert selection.target[0].tolist() == [0, 0, 0, 3, 4, 0, 0, 0]
