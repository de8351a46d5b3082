"""ExpertCalibration: which experts of a model tokens can go past, as it was measured on questions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MethodError
from ..files import MARK, write_bytes
from .measured import cache_folder, checkpoint_key, find_measured, may_be_same

FORMAT = "foveate-experts"
VERSION = 1


@dataclass(frozen=True)
class ExpertCalibration:
    """What `foveate calibrate --experts` measured; see `foveate.methods.toolkit.ExpertSkip` for what the numbers mean.

    Args:
        rule: ``"threshold"`` or ``"ratio"``.
        model: name or path of the model; empty for one without a name, which `measured_on` then takes for any.
        weights: of each decoder layer, 0 for dense ones: how much the answer changes without its experts, or by the
            other rule the ratio below which an expert is skipped.
        text: threshold of text; 0 by the other rule.
        visual: threshold of visual tokens; 0 by the other rule.
        questions: how many were asked.
        skipped: the share of experts that was skipped on these questions: of ``"all"`` tokens, of ``"text"`` and of
            ``"visual"`` ones.
        divergence: the Kullback-Leibler divergence of the answers' first token, in nats, from the model that skips
            none.
    """

    rule: str
    model: str
    weights: tuple[float, ...]
    text: float = 0.0
    visual: float = 0.0
    questions: int = 0
    skipped: Mapping[str, float] = field(default_factory=dict)
    divergence: float = 0.0

    def __post_init__(self) -> None:
        numbers = (*self.weights, self.text, self.visual)
        if self.rule not in ("threshold", "ratio") or not self.weights:
            raise MethodError("a calibration of experts has a rule and a weight for each layer; calibrate again.")
        if not all(isinstance(one, (int, float)) and math.isfinite(one) and one >= 0 for one in numbers):
            raise MethodError(f"the experts' calibration of {self.model} must be of finite numbers of at least 0.")

    def save(self, path: str | Path) -> None:
        """Write one JSON file, making its folder where needed.

        Raises:
            WriteError: when it cannot be written.
        """
        told = {"format": FORMAT, "version": VERSION, "software": MARK, **asdict(self)}
        write_bytes(Path(path), (json.dumps(told, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> ExpertCalibration:
        """Read what `save` wrote.

        Raises:
            MethodError: when the file is missing, is not such a calibration, or was written by another version.
        """
        try:
            told: Any = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MethodError(f"the experts' calibration {path} cannot be read ({error}); calibrate again.") from error
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise MethodError(f"{path} is not a calibration of experts; make one with `foveate calibrate --experts`.")
        if told.get("version") != VERSION:
            raise MethodError(f"{path} has format version {told.get('version')}, not {VERSION}: calibrate again.")
        facts = {name: value for name, value in told.items() if name not in ("format", "version", "software")}
        try:
            return cls(**{**facts, "weights": tuple(facts["weights"])})
        except (KeyError, TypeError) as error:
            raise MethodError(f"the experts' calibration {path} is damaged ({error}); calibrate again.") from error

    def measured_on(self, name_or_path: str) -> bool:
        """Whether this may be of the model called so: false only where both have names that differ."""
        return may_be_same(self.model, name_or_path)


def default_experts_path(model: str, rule: str, revision: str = "") -> Path:
    """Where `foveate calibrate --experts` keeps what it measured of a model; see `default_prior_path`."""
    return cache_folder() / "experts" / f"{checkpoint_key(model, revision)}-{rule}.json"


def find_experts(model_name_or_path: str, rule: str, revision: str = "") -> ExpertCalibration | None:
    """What was calibrated here, else what lies in the model's own folder, else None."""
    kept = default_experts_path(model_name_or_path, rule, revision)
    path = find_measured(kept, model_name_or_path, f"foveate-experts-{rule}.json", revision)
    return None if path is None else ExpertCalibration.load(path)
