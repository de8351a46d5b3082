"""What answers cost: for each question, in lmms-eval's samples, and in sum, in its results and in a file of our own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import write_text


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: of the answer, without what comes behind a text that ends it.
        prompt_tokens: as the language model read them, after pruning before it; of the last layer, where pruning is
            inside.
        answer_tokens: with the one that ends it.
        costs: by name. ``visual_tokens_before`` and ``visual_tokens``; ``average_visual_tokens``, the mean over the
            language model's layers; where they are known ``text_flops``, ``vision_flops`` and ``kv_bytes`` of the
            prefill, and ``encode_seconds``, ``select_seconds``, ``prefill_seconds`` and ``decode_seconds``; and
            ``seconds``, of all. Of a batch, each question has its share.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    costs: Mapping[str, float] = field(default_factory=dict)


class Ledger:
    """Adds up the costs of answers.

    Args:
        path: the JSON file to write them to; None writes none.
        facts: what the file says besides.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any]) -> None:
        self._path, self._facts = path, dict(facts)
        self._sums: Counter[str] = Counter()
        self._times: Counter[str] = Counter()  # how many answers know a cost

    def add(self, answers: Sequence[Answer]) -> None:
        """Count some answers."""
        for answer in answers:
            known = {"questions": 1, "prompt_tokens": answer.prompt_tokens, "answer_tokens": answer.answer_tokens}
            for name, value in {**known, **answer.costs}.items():
                self._sums[name] += value  # type: ignore[assignment]
                self._times[name] += 1

    @property
    def sums(self) -> dict[str, float]:
        """Of all answers, by name; ``questions`` is how many they are."""
        return dict(self._sums)

    @property
    def means(self) -> dict[str, float]:
        """Of a question."""
        return {name: total / self._times[name] for name, total in self._sums.items() if name != "questions"}

    def write(self) -> None:
        """Write the file, if there is one to write."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        told = {**self._facts, "sums": self.sums, "means": self.means}
        write_text(self._path, json.dumps(told, indent=1) + "\n")
