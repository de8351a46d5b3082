"""The selectors as their formulas read: Python loops, one image, float64 where it does not matter."""

import math

import torch

from foveate.selection.similarity import EPSILON, TokenFeatures


def cosine(features):
    unit = features.float() / (features.float().norm(dim=-1, keepdim=True) + 1e-8)
    return unit @ unit.T


def token_features(features):
    return TokenFeatures.from_norms(features, features.norm(dim=-1) + EPSILON)


def first_best(values, allowed):
    best = None
    for i in allowed:
        if best is None or values[i] > values[best]:
            best = i
    return best


def mask(picked, n):
    keep = torch.zeros(n, dtype=torch.bool)
    keep[picked] = True
    return keep


def topk(scores, count):
    order = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    return mask(order[:count], len(scores))


def mmr(features, importance, count, balance):
    s, w = cosine(features), importance.float()
    w = (w - w.min()) / (w.max() - w.min() + 1e-6)
    left = list(range(len(w)))
    picked = [first_best(w.tolist(), left)]
    while len(picked) < count:
        left = [i for i in left if i not in picked]
        value = {i: balance * w[i].item() - (1 - balance) * max(s[i, j].item() for j in picked) for i in left}
        picked.append(first_best(value, left))
    return mask(picked, len(w))


def maxmin(features, count):
    distance = 1 - cosine(features)
    n = len(distance)
    alone = [min((distance[i, j].item() for j in range(n) if j != i), default=0) for i in range(n)]
    picked = [first_best(alone, range(n))]
    while len(picked) < count:
        left = [i for i in range(n) if i not in picked]
        value = {i: min(distance[i, j].item() for j in picked) for i in left}
        picked.append(first_best(value, left))
    return mask(picked, n)


def coverage(features, scores, count, alpha):
    s = cosine(features).double()
    n, covered, picked = len(s), torch.zeros(len(s), dtype=torch.double), []
    while len(picked) < count:
        gain = [(s[:, j] - covered).clamp(min=0).sum().item() * scores[j].item() ** alpha for j in range(n)]
        picked.append(first_best(gain, [j for j in range(n) if j not in picked]))
        covered = torch.maximum(covered, s[:, picked[-1]])
    return mask(picked, n)


def independent_set(features, scores, count, places, pivots, threshold, weight, pivots_suppress):
    s = cosine(features)
    n = len(scores)

    def near(i, j):
        (f, r, c), (g, q, e) = places[i], places[j]
        plane = math.exp(-((r - q) ** 2 + (c - e) ** 2) / (2 * 1.5**2)) if f == g else 0.0
        return (1 - weight) * s[i, j].item() + weight * plane > threshold

    order = sorted(range(n), key=lambda i: -scores[i].item())
    picked = order[: math.floor(pivots * count)]
    open_ = [i for i in order if i not in picked]
    if pivots_suppress:
        open_ = [i for i in open_ if not any(near(p, i) for p in picked)]
    while len(picked) < count and open_:
        pick = open_[0]
        picked.append(pick)
        open_ = [i for i in open_[1:] if not near(pick, i)]
    picked += [i for i in order if i not in picked][: count - len(picked)]
    return mask(picked, n)


def dpp(features, relevance, count):
    """The largest determinant at every step, computed anew in float64."""
    s, r = cosine(features.double()).double(), relevance.double()
    r = (r - r.min() + 1e-6) / (r.max() - r.min() + 1e-6)
    kernel = r[:, None] * s * r
    picked = []
    while len(picked) < count:
        left = [j for j in range(len(r)) if j not in picked]
        value = {j: torch.linalg.slogdet(kernel[[*picked, j]][:, [*picked, j]]).logabsdet.item() for j in left}
        picked.append(first_best(value, left))
    return mask(picked, len(r))
