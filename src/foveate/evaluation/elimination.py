"""Which configuration is the cheapest that keeps a share of the unpruned accuracy: the decision, without any model.

**What is bet on.** Of a question, p in [0, 1] is how right a configuration's answer is and f how right the unpruned
model's. The configuration keeps the share `floor` where the mean of ``d = p - floor * f`` is at least 0. Whoever bets a
part ``b`` of what he owns on each question, and gets what he owns back times ``1 + b * d``, gains nothing on average
where that mean is 0 or less, whatever he makes of the questions before (Waudby-Smith and Ramdas, JRSS B 2024,
"Estimating means of bounded random variables by betting"). So whoever makes 20 out of 1 has shown at 95 % confidence
that the mean is above 0, and he may look after every question (Ville's inequality). Questions on which both answers
agree cost next to nothing; that is what pairing is worth.

**One stake for all.** A stake of 1 is divided evenly among the configurations, and each bets its own part. A
configuration is *shown* to keep the floor once its part is ``1 / (1 - confidence)``. One that is given up, or shown,
passes on what it was given, or what is left of that, to those that are still asked. Then, for any number of methods,
budgets and looks and any rule of giving up, **the probability that any configuration is shown which does not keep the
floor is at most** ``1 - confidence``. Proof: let W be the configurations that do not keep it. Add up what those in W
own and what the others were given and have not passed on. At the start that is 1; bets in W do not raise it on average,
bets of the others do not touch it, and passing on adds nowhere more than it takes away. So it is a nonnegative
supermartingale, and by Ville's inequality it ever reaches ``1 / (1 - confidence)`` with at most that probability.

It rests on one assumption: the questions are independent draws from those that the floor is about, in an order that
does not depend on the answers. What belongs together, such as the questions about one image, must come as one draw with
the mean of its answers; asked one by one, they break the guarantee.

**Who is asked on.** Rounds grow geometrically. After each, those are given up that cost as much as one that was shown,
that would hardly be shown with the questions that are left, and, of those that cost the same, the worse half as far as
they are clearly behind the best: sequential halving (Karnin, Koren and Somekh, ICML 2013). These rules decide how soon
and how often the best one is found; they cannot break the guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .statistics import Array
from .suites import EvaluationError

State = Literal["asked", "shown", "not needed", "hopeless", "behind", "refused"]
Ask = Callable[[Sequence[int], range], tuple[Array, Array]]
FIRST, GROWTH = 32, 1.4  # questions of the first round, and by how much their number rises with each
_BETS = np.geomspace(0.1, 0.98, 8)  # as parts of the largest bet that cannot lose all; their gains are averaged
_HOPE = 1.5  # standard errors above what was seen: what one might have who is not given up
_BEHIND = 1.0  # standard errors behind the best of those that cost the same


@dataclass
class Elimination:
    """The search for the cheapest configuration that keeps the floor.

    Examples:
        >>> import numpy as np
        >>> right = np.random.default_rng(0).random(1000) < 0.8  # of the unpruned model
        >>> table = np.stack([right, right & (np.arange(1000) % 4 > 0)])  # at 25 %, no loss; at 10 %, a quarter
        >>> search = Elimination(costs=[0.25, 0.1], floor=0.95, total=1000)
        >>> search.run(lambda configurations, places: (right[places], table[configurations][:, places]))
        0
        >>> search.states, search.seen
        (['shown', 'hopeless'], 175)

    Args:
        costs: (C,) of each configuration; the lowest is looked for. Those that cost exactly the same compete.
        floor: the share of the unpruned accuracy to keep, in (0, 1].
        total: how many questions there are.
        confidence: 1 minus the probability that one is shown which does not keep the floor.

    Attributes:
        states: of each configuration: ``asked`` (still), ``shown`` (to keep the floor), ``not needed`` (one that costs
            no more was shown), ``hopeless`` (would hardly be shown with all questions), ``behind`` (another that costs
            the same is better), ``refused``.
        seen: questions that those still asked have been asked.
        counts: (C,) questions that each has been asked.

    Raises:
        EvaluationError: for a floor or confidence out of range, and for no configuration.
    """

    costs: Sequence[float] | Array
    floor: float
    total: int
    confidence: float = 0.95
    states: list[State] = field(init=False)
    seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise EvaluationError(f"floor={self.floor!r} must lie in (0, 1]; 0.99 keeps 99 % of the accuracy.")
        if not 0 < self.confidence < 1:
            raise EvaluationError(f"confidence={self.confidence!r} must lie between 0 and 1, such as 0.95.")
        if not len(self.costs):
            raise EvaluationError("there is no configuration to choose from; give a method and a budget.")
        count = len(self.costs)
        self.costs = np.asarray(self.costs, dtype=float)
        self.states = ["asked"] * count
        self.counts = np.zeros(count, int)
        self._given = np.full(count, 1 / count)
        self._owned = np.full(count, 1 / count)
        self._bets = _BETS / self.floor
        self._gains = np.zeros((count, len(_BETS)))  # logarithms, of each bet alone
        self._differences = np.zeros((count, self.total))  # of all questions asked
        self._rights = np.zeros((count, 2))  # of a configuration, and of the unpruned model on the same questions

    @property
    def asked(self) -> list[int]:
        """The configurations that are still asked."""
        return [place for place, state in enumerate(self.states) if state == "asked"]

    @property
    def found(self) -> int | None:
        """The cheapest that was shown, of several the surest; None: keep everything."""
        shown = [place for place, state in enumerate(self.states) if state == "shown"]
        return min(shown, key=lambda place: (self.costs[place], -self.share(place)), default=None)

    def share(self, place: int) -> float:
        """What a configuration kept of the unpruned accuracy, on the questions that it was asked; NaN for none."""
        own, full = self._rights[place]
        return float(own / full) if full else math.nan

    def run(self, ask: Ask) -> int | None:
        """Search to the end, and return `found`.

        Args:
            ask: called with some configurations (a list of places in `costs`) and the next questions (a range);
                returns how right the unpruned model is on them, (Q,), and how right each configuration is, (A, Q), all
                in [0, 1].
        """
        while questions := self.next_questions():
            full, pruned = ask(self.asked, questions)
            self.tell(full, pruned)
        return self.found

    def next_questions(self) -> range:
        """What those in `asked` are to be asked next; empty when the search is over."""
        end = FIRST if not self.seen else math.ceil(self.seen * GROWTH)
        return range(self.seen, min(self.total, end) if self.asked else self.seen)

    def refuse(self, place: int) -> None:
        """Leave out a configuration that cannot be asked."""
        self._retire(place, "refused")

    def tell(self, full: Array, pruned: Array) -> None:
        """Take the answers of `next_questions`, as `run` describes them, and decide who is asked on.

        Raises:
            EvaluationError: for values outside [0, 1].
        """
        asked = self.asked
        full, pruned = np.asarray(full, dtype=float), np.asarray(pruned, dtype=float)
        if not all(((one >= 0) & (one <= 1)).all() for one in (full, pruned)):
            raise EvaluationError("answers are judged from 0 (wrong) to 1 (right); give values in between.")
        difference = pruned - self.floor * full
        new = slice(self.seen, self.seen + len(full))
        self._differences[asked, new] = difference
        self._rights[asked] += np.stack([pruned.sum(1), np.full(len(asked), full.sum())], 1)
        before = self._gains[asked]
        path = before[:, :, None] + np.log1p(self._bets[:, None] * difference[:, None]).cumsum(2)
        self._gains[asked] = path[:, :, -1]
        owned = self._owned[asked, None] * np.exp(_log_mean(path) - _log_mean(before[:, :, None]))
        self._owned[asked] = owned[:, -1]
        self.seen = new.stop
        self.counts[asked] = self.seen
        for place, most in zip(asked, owned.max(1), strict=True):  # whoever made it during the round has made it
            if most >= 1 / (1 - self.confidence):
                self._owned[place] = most
                self._retire(place, "shown")
        self._give_up()

    def _retire(self, place: int, state: State) -> None:
        """Take a configuration out, and divide what it passes on among those that are left."""
        self.states[place] = state
        passed = min(self._given[place], self._owned[place])
        if left := self.asked:
            self._given[left] += passed / len(left)
            self._owned[left] += passed / len(left)

    def _give_up(self) -> None:
        """Retire those that there is no use to ask on."""
        costs, seen = np.asarray(self.costs), self.seen
        least = min((costs[place] for place, state in enumerate(self.states) if state == "shown"), default=math.inf)
        for place in self.asked:
            if costs[place] >= least:
                self._retire(place, "not needed")
        told = self._differences[:, :seen]
        means = told.mean(1)
        variances = told.var(1) + 1 / seen  # nothing is known to never happen
        hoped = means + _HOPE * np.sqrt(variances / seen)
        growths = np.where(hoped > 0, hoped**2 / (2 * (variances + hoped**2)), 0.0)  # of logarithms, by a question
        spare = sum(min(self._given[place], self._owned[place]) for place in self.asked)
        for place in self.asked:
            most = math.log(max(self._owned[place], spare)) + (self.total - seen) * growths[place]
            if hoped[place] <= 0 or most < -math.log(1 - self.confidence):
                self._retire(place, "hopeless")
        for cost in set(costs[self.asked]):
            ranked = sorted((place for place in self.asked if costs[place] == cost), key=lambda place: -means[place])
            for place in ranked[(len(ranked) + 1) // 2 :]:
                behind = told[ranked[0]] - told[place]
                if behind.mean() > _BEHIND * math.sqrt((behind.var() + 1 / seen) / seen):
                    self._retire(place, "behind")


def _log_mean(logarithms: Array) -> Array:
    """(A, B, Q) logarithms as those of the means over B: (A, Q)."""
    top = logarithms.max(1)
    return top + np.log(np.exp(logarithms - top[:, None]).mean(1))
