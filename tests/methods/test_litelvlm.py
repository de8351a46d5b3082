"""LiteLVLM: an implementation over lists on padded batches. What it reads of the encoder is tested where cues are."""

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import EncoderReading, Grid, VisualTokens


def naive(features, text, context, count, share, sign):
    mean = text.double().mean(0)
    likeness = [float(torch.cosine_similarity(row.double(), mean, dim=0)) for row in features]
    referent = sorted(range(len(features)), key=lambda i: (likeness[i] if sign == "minus" else -likeness[i], i))
    out = referent[: int(count * share + 0.5)]
    rest = sorted((i for i in range(len(features)) if i not in out), key=lambda i: (-float(context[i]), i))
    return sorted(out + rest[: count - len(out)])


@pytest.mark.parametrize(("share", "sign"), [(0.5, "minus"), (0.5, "plus"), (0.0, "minus"), (1.0, "minus")])
def test_lists(share, sign):
    random = torch.Generator().manual_seed(2)
    features, context = torch.randn(3, 20, 6, generator=random), torch.rand(3, 20, 1, generator=random)
    text, valid = (
        torch.randn(3, 4, 6, generator=random),
        torch.tensor([[True] * 4, [False, True, True, True], [True] * 4]),
    )
    tokens = VisualTokens(
        features,
        ((Grid(4, 5),), (Grid(2, 4),), (Grid(3, 2), Grid(2, 3, 2))),
        encoder_readings=context,
        text_embeddings=text,
        text_valid=valid,
    )
    method, counts = get_method("litelvlm", referent=share, sign=sign), [7, 1, 12]
    keep = method.select(tokens, torch.tensor(counts)).keep
    for row, (size, count) in enumerate(zip([20, 8, 18], counts, strict=True)):
        expected = naive(features[row, :size], text[row, valid[row]], context[row, :size, 0], count, share, sign)
        assert keep[row].nonzero()[:, 0].tolist() == expected


def test_what_it_reads():
    assert get_method("litelvlm").encoder_readings == (EncoderReading(1.0, "values"),)
