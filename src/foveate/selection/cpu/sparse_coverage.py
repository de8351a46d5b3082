"""Greedy coverage of many tokens on a CPU, in memory of O(N * d): `coverage.reference` in about two products of all.

After k picks a token i is covered up to m_i, and of all candidates only about one in k is more similar to i than that:
the others cannot cover it better any more. So after some hundred picks what can still change fits into lists, and the
greedy loop needs no features any more. How the picks before that are made, without the gains of all candidates after
each of them:

1. **Members.** Only the candidates that look best on a sample of the tokens are followed. A pick raises the coverage
   of some tokens, and the gains of the members fall by what they would have added there: one product of the members
   with these tokens, of which there are about N / k.
2. **Verification.** Gains only fall, so that the gain of a candidate at one pick is an upper bound at all later ones.
   All other candidates are compared with all tokens once. Their gains are summed up anew at just those picks at which
   the last known ones would have won, which costs far less than the product. If one really would have won, all that
   looks as good joins the members, and the picks from there on are made again.
3. **Lists.** The same product gives the pairs that are still more similar than the coverage.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import TokenFeatures, snap_near_one
from .lazy_greedy import Floats, Indices
from .pair_lists import ListBuilder, find_pairs

SAMPLE = 2048  # tokens whose coverage tells which candidates look best
MIN_MEMBERS = 1024
EARLY_PICKS = 128  # about so many are made among the members: who looks as good as the last of them is one, ...
MEMBER_MARGIN = 0.85  # ... or this share as good
MOST_MEMBERS = 0.6  # of all tokens: beyond it nobody is left out, and nothing has to be verified
LIST_LENGTH = 1.5  # entries for each token on average, by the number of its features, of which MIN_WIDTH are assumed
MIN_WIDTH = 256
PROBES = 128  # tokens by which the length of the lists is estimated, every PROBE_STEP picks
PROBE_STEP = 8
ROWS, COLUMNS = 128, 1024  # of a block of cosines that stays in the processor's cache
VERIFIED = 64  # candidates that are compared with all tokens once more, if that did not rule them out
CHECK_MARGIN = 1.08  # by so much a gain may fall more slowly than those of the picks, from one checkpoint to the next
# Two ways to sum up the same gain differ by so much of what was added and taken away. What is closer than that is
# computed anew, in one way, so that equal gains tie.
ROUNDING = 2e-6
CLEARLY = 1e-4  # a bound that is lower than what was picked by less than this share is not trusted


def sparse_coverage(features: TokenFeatures, weight: Tensor, count: int) -> Tensor:
    """The picks of the greedy loop of `coverage.reference`.

    Args:
        features: N tokens, on the CPU.
        weight: (N,) float32, the factor of each token's gain, at least 0.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long; ties to the lowest index.
    """
    return torch.from_numpy(_SparseCoverage(features, weight, count).run())


class _SparseCoverage:
    def __init__(self, features: TokenFeatures, weight: Tensor, count: int) -> None:
        self._unit = features.vectors * features.inverse_norms[:, None]
        self._weight: Floats = weight.numpy()
        self._count = count
        tokens, width = self._unit.shape
        self._capacity = int(LIST_LENGTH * max(width, MIN_WIDTH)) * tokens
        self._probes = torch.linspace(0, tokens - 1, min(PROBES, tokens), dtype=torch.float64, device="cpu").long()
        self._to_probes = self._unit[self._probes] @ self._unit.T
        self._most_snapshots = max(width, MIN_WIDTH)
        self._covered = self._unit.new_zeros(tokens)
        self._snapshots = {0: self._covered.clone()}  # the coverage before a pick, by the number of picks
        self._picks: list[int] = []
        self._values: list[float] = []  # of each pick when it was made
        self._least = 1  # so many picks are made before lists are tried
        self._order = self._by_promise()
        self._members = self._order[:0]
        self._follow(self._enlarge(self._first_members()))

    def run(self) -> Indices:
        while True:
            self._pick_among_members()
            lists = None
            if len(self._picks) < self._count:
                lists = ListBuilder(len(self._weight), self._capacity)
            wrong = self._verify(lists)
            if wrong is not None:
                self._return_to(*wrong)
            elif lists is None:
                return np.array(self._picks, dtype=np.int64)
            elif self._list_members(lists):
                return self._pick_by_lists(lists)
            else:
                self._least = 2 * len(self._picks)

    # Members

    def _by_promise(self) -> Indices:
        """All tokens, those first that would cover a sample of the tokens best."""
        some = torch.linspace(
            0, len(self._unit) - 1, min(SAMPLE, len(self._unit)), dtype=torch.float64, device="cpu"
        ).long()
        sample = self._unit[some]
        gains = torch.cat([(part @ sample.T).clamp_(min=0).sum(1) for part in self._unit.split(ROWS)])
        self._promise: Floats = gains.numpy() * self._weight
        return np.argsort(-self._promise, kind="stable")

    def _first_members(self) -> int:
        limit = MEMBER_MARGIN * self._promise[self._order[min(self._count, EARLY_PICKS) - 1]]
        return max(int((self._promise >= limit).sum()), MIN_MEMBERS)

    def _follow(self, size: int) -> None:
        """Make the first `size` of all tokens by promise the members."""
        self._members = np.sort(self._order[:size])
        self._member_features = self._unit[torch.from_numpy(self._members)]
        self._member_weight = self._weight[self._members]
        self._gains = self._gains_of(self._member_features)
        self._summed = self._gains.copy()  # each gain when it was last summed up over all tokens
        self._is_new = np.ones(size, dtype=bool)  # whether that was after the last pick
        self._is_open = ~np.isin(self._members, self._picks)

    def _return_to(self, size: int, picks: int) -> None:
        """Undo all but so many picks, and go on with `size` members."""
        picks = max(known for known in self._snapshots if known <= picks)
        self._covered = self._snapshots[picks].clone()
        self._snapshots = {known: c for known, c in self._snapshots.items() if known <= picks}
        del self._picks[picks:], self._values[picks:]
        self._follow(size)

    def _pick_among_members(self) -> None:
        """Pick until all are picked, or until the lists are short enough."""
        while len(self._picks) < self._count:
            made = len(self._picks)
            if made >= self._least and made % PROBE_STEP == 0 and self._list_entries() <= self._capacity:
                return
            best = self._best_member()
            self._values.append(float(self._gains[best] * self._member_weight[best]))
            self._picks.append(int(self._members[best]))
            self._is_open[best] = False
            self._cover(self._picks[-1])
            self._remember()

    def _best_member(self) -> int:
        """The position of the open member of highest value; ties to the lowest index."""
        while True:
            weight = self._member_weight
            value = np.where(self._is_open, self._gains * weight, -np.inf)
            error = ROUNDING * (self._summed - self._gains) * weight
            near = np.flatnonzero(value + error >= (value - error).max())
            old = near[~self._is_new[near]]
            if len(near) == 1 or len(old) == 0:
                return int(near[(self._gains[near].astype(np.float32) * weight[near]).argmax()])
            old = old[np.argsort(-value[old], kind="stable")[:ROWS]]
            self._gains[old] = self._summed[old] = self._gains_of(self._member_features[torch.from_numpy(old)])
            self._is_new[old] = True

    def _cover(self, pick: int) -> None:
        """Raise the coverage by a pick, and lower the gains of the members."""
        cosines = snap_near_one(self._unit @ self._unit[pick])
        raised = (cosines > self._covered).nonzero()[:, 0]
        before, after = self._covered[raised], cosines[raised]
        self._covered[raised] = after
        lost = np.zeros(len(self._members))
        for some in range(0, len(raised), COLUMNS):
            tokens = self._unit[raised[some : some + COLUMNS]].T
            low = before[some : some + COLUMNS]
            least, most = torch.zeros_like(low), after[some : some + COLUMNS] - low
            for start in range(0, len(lost), ROWS):
                part = torch.addmm(-low, self._member_features[start : start + ROWS], tokens)
                lost[start : start + ROWS] += torch.clamp(part, least, most, out=part).sum(1).numpy()
        self._gains = np.maximum(self._gains - lost, 0)
        self._is_new &= lost == 0

    def _remember(self) -> None:
        """Keep the coverage for the verification; of many picks only of every second, fourth, ... one."""
        self._snapshots[len(self._picks)] = self._covered.clone()
        if len(self._snapshots) > self._most_snapshots:
            self._snapshots = dict(list(self._snapshots.items())[::2])

    def _gains_of(self, features: Tensor) -> NDArray[np.float64]:
        """(M,) the sums of what M candidates (M, d) would add to the coverage, without their weights."""
        gains = np.zeros(len(features))
        for start in range(0, len(gains), ROWS):
            part = features[start : start + ROWS]
            for some in range(0, len(self._unit), COLUMNS):
                cosines = snap_near_one(part @ self._unit[some : some + COLUMNS].T)
                added = cosines.sub_(self._covered[some : some + COLUMNS]).clamp_(min=0)
                gains[start : start + ROWS] += added.sum(1).numpy()
        return gains

    def _list_entries(self) -> float:
        """About how many pairs of all tokens are more similar than the coverage."""
        higher = int((self._to_probes > self._covered[self._probes, None]).sum())
        return higher * len(self._unit) / len(self._probes)

    # Verification

    def _verify(self, lists: ListBuilder | None) -> tuple[int, int] | None:
        """Check that nobody else would have won, and list the pairs of those checked.

        Returns:
            If somebody would: how many members there have to be, and how many picks are right whoever of them is one.
        """
        values: NDArray[np.float64] = np.minimum.accumulate(self._values)  # falling but for rounding
        start, stop, is_wrong = len(self._members), len(self._order), False
        unclear = np.empty(0, dtype=np.int64)
        while start < stop and len(values):
            tokens = self._order[start : start + ROWS]
            start += len(tokens)
            places = self._checkpoints(values, float(self._promise[tokens[0]]))
            features = self._unit[torch.from_numpy(tokens)]
            bounds = self._gains_at(features, places, None if lists is None else (lists, tokens)) * self._weight[tokens]
            # A bound holds until the next is known, and values fall.
            lowest = values[np.append(places[1:], len(values)) - 1]
            unclear = np.append(unclear, tokens[(bounds * (1 + CLEARLY) >= lowest[:, None]).any(0)])
            if len(unclear) < VERIFIED and start < stop:
                continue
            for some in range(0, len(unclear), VERIFIED):
                right = self._right_picks(unclear[some : some + VERIFIED], values)
                if right < len(values):
                    # Who becomes a member without having been checked is checked now.
                    stop = stop if is_wrong else self._enlarge(start)
                    values, lists, is_wrong = values[:right], None, True
            unclear = unclear[:0]
        return (stop, len(values)) if is_wrong else None

    def _enlarge(self, size: int) -> int:
        """How many members there are to be next if these, in the order of promise, have to be."""
        size = max(size, 2 * len(self._members))
        return len(self._order) if size > MOST_MEMBERS * len(self._order) else size

    def _checkpoints(self, values: NDArray[np.float64], promise: float) -> Indices:
        """The picks before which to sum up the gains of candidates of this promise: to rule them out, probably."""
        share = CHECK_MARGIN * promise / self._promise[self._order[0]]
        known = np.array(list(self._snapshots))
        places = [0]
        while True:
            following = np.searchsorted(-values, -share * values[places[-1]])
            later = known[(known > places[-1]) & (known < len(values))]
            if following >= len(values) or len(later) == 0:
                return np.array(places)
            places.append(int(later[max(int(np.searchsorted(later, following, side="right")) - 1, 0)]))

    def _gains_at(
        self, features: Tensor, places: Indices, listed: tuple[ListBuilder, Indices] | None
    ) -> NDArray[np.float64]:
        """(P, M): the gains of candidates (M, d) before each of some picks; lists their pairs on the way."""
        covered = [self._snapshots[place] for place in places]
        totals = torch.zeros(len(places), len(features), dtype=torch.float64, device="cpu")
        both = features.new_empty(2, len(features) * COLUMNS)
        blocks = []
        for some in range(0, len(self._unit), COLUMNS):
            tokens = self._unit[some : some + COLUMNS]
            cosines, higher = (one[: len(features) * len(tokens)].view(-1, len(tokens)) for one in both)
            torch.mm(features, tokens.T, out=cosines)
            for known, total in zip(covered, totals, strict=True):
                torch.maximum(cosines, known[some : some + COLUMNS], out=higher)
                total += higher.sum(1)
            if listed is not None and not listed[0].overflows:
                blocks.append(find_pairs(cosines, self._covered[some : some + COLUMNS], some))
        if listed is not None:
            listed[0].add(listed[1], blocks)
        without: list[float] = [float(known.sum(dtype=torch.float64)) for known in covered]
        return totals.numpy() - np.array(without)[:, None]

    def _right_picks(self, tokens: Indices, values: NDArray[np.float64]) -> int:
        """How many picks come before the first that one of these candidates (M,) may have won."""
        weight, places = self._weight[tokens], np.array(list(self._snapshots))
        cosines, known = self._unit[torch.from_numpy(tokens)] @ self._unit.T, np.zeros(len(tokens), dtype=np.int64)
        bounds = self._sum_gains(cosines, 0) * weight
        while len(values):
            # Values of picks fall, so that the highest bound is the first to exceed one.
            best = int(bounds.argmax())
            first = int(np.searchsorted(-values, -bounds[best] * (1 + CLEARLY)))
            place = int(places[np.searchsorted(places, first, side="right") - 1])
            if first == len(values) or known[best] == place:
                return first
            rows = np.flatnonzero(bounds * (1 + CLEARLY) >= 0.9 * values[first])
            if 2 * len(rows) > len(weight):
                rows = np.arange(len(weight))
            some = cosines if len(rows) == len(weight) else cosines[torch.from_numpy(rows)]
            bounds[rows] = self._sum_gains(some, place) * weight[rows]
            known[rows] = place
        return 0

    def _sum_gains(self, cosines: Tensor, picks: int) -> NDArray[np.float64]:
        """(M,): the gains of candidates before a pick, by their cosines (M, N)."""
        covered = self._snapshots[picks]
        gains = torch.zeros(len(cosines), dtype=torch.float64, device="cpu")
        for some in range(0, len(covered), COLUMNS):
            gains += (cosines[:, some : some + COLUMNS] - covered[some : some + COLUMNS]).clamp_(min=0).sum(1)
        return gains.numpy()

    # Lists

    def _list_members(self, lists: ListBuilder) -> bool:
        """List the pairs of the members too; whether all pairs had room."""
        none = np.empty(0, dtype=np.int64)
        for start in range(0, len(self._members), ROWS):
            if not lists.overflows:
                part = self._member_features[start : start + ROWS]
                self._gains_at(part, none, (lists, self._members[start : start + ROWS]))
        return not lists.overflows

    def _pick_by_lists(self, lists: ListBuilder) -> Indices:
        """All picks: only pairs that are listed can still change a gain."""
        covered: Floats = self._covered.numpy()
        by_candidate, by_token, gains = lists.build(self._covered)
        made = len(self._picks)
        picks = np.array(self._picks + [-1] * (self._count - made), dtype=np.int64)
        closed = np.zeros(len(gains), dtype=bool)
        closed[picks[:made]] = True
        values = gains.astype(np.float32) * self._weight
        values[closed] = -np.inf
        for step in range(made, self._count):
            picks[step] = pick = int(values.argmax())
            closed[pick], values[pick] = True, -np.inf
            raised, after = by_candidate.of(pick)
            higher = after > covered[raised]
            raised, after = raised[higher], after[higher]
            before = covered[raised]
            covered[raised] = after
            others, cosines, length = by_token.of_all(raised)
            low = np.repeat(before, length).astype(np.float64)
            lost = np.minimum(cosines, np.repeat(after, length)) - low
            changed = (lost > 0) & ~closed[others]
            others = others[changed]
            np.subtract.at(gains, others, lost[changed])
            values[others] = np.maximum(gains[others], 0).astype(np.float32) * self._weight[others]
        return picks
