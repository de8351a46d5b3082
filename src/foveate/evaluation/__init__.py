"""What pruning costs and saves: suites of questions, answers, statistics, tables and plots."""

from .elimination import Elimination
from .leaderboard import write_leaderboard
from .plots import ReportError, write_report
from .report import Report
from .results import Results, Row
from .runner import Evaluation, evaluate
from .statistics import Bootstrap, Estimate, bootstrap
from .suites import EvaluationError, Suite, dataset, suite
from .tuner import Tuning, tune

__all__ = [
    "Bootstrap",
    "Elimination",
    "Estimate",
    "Evaluation",
    "EvaluationError",
    "Report",
    "ReportError",
    "Results",
    "Row",
    "Suite",
    "Tuning",
    "bootstrap",
    "dataset",
    "evaluate",
    "suite",
    "tune",
    "write_leaderboard",
    "write_report",
]
