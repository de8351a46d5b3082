"""Figures that papers print, to stand beside measured ones; none was measured by foveate."""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: model, task and unit.
        source: where it is printed.
        about: what to know before comparing.
        head: of the columns.
        rows: cells as printed; an empty one where nothing is.
    """

    title: str
    source: str
    about: str
    head: Row
    rows: tuple[Row, ...]


PAPER_TABLES = (
    PaperTable(
        "Qwen2.5-VL-7B-Instruct, eleven benchmarks, % of unpruned",
        "IDPruner, arXiv 2602.13315, main table",
        "AI2D, ChartQA, DocVQA, MMBench (English and Chinese), MME, MMStar, OCRBench, POPE, ScienceQA and TextVQA at "
        "native resolution; the mean of the ratios to the unpruned score. No intervals are printed.",
        ("method", "25 %", "10 %"),
        (
            ("idpruner", "95.18", "86.47"),
            ("visionselector", "94.22", "85.39"),
            ("scope", "92.51", "79.35"),
            ("divprune", "89.26", "76.09"),
            ("vispruner", "88.31", "72.60"),
            ("hiprune", "87.80", "72.22"),
            ("visionzip", "87.55", "71.84"),
            ("fastv", "87.16", "68.07"),
            ("dart", "85.74", "69.80"),
        ),
    ),
    PaperTable(
        "LLaVA-1.5-7B, the same eleven benchmarks, % of unpruned",
        "IDPruner, arXiv 2602.13315",
        "Of 576 tokens.",
        ("method", "128 tokens", "64 tokens", "32 tokens"),
        (
            ("idpruner", "97.26", "92.34", "87.43"),
            ("scope", "96.77", "91.90", ""),
            ("hiprune", "95.63", "89.56", "81.87"),
            ("visionselector", "95.51", "90.49", "84.12"),
            ("vispruner", "95.39", "89.77", ""),
            ("visionzip", "94.86", "89.14", "81.15"),
            ("divprune", "93.09", "87.82", "80.78"),
            ("dart", "85.69", "79.88", ""),
            ("fastv", "81.59", "66.68", "59.83"),
        ),
    ),
    PaperTable(
        "RefCOCO, RefCOCO+ and RefCOCOg, InternVL-2.5-8B, % of unpruned accuracy at IoU 0.5",
        "D2Pruner, arXiv 2512.19443",
        "The figure of FastV is quoted by others from the paper's table 3.",
        ("method", "10 %"),
        (("d2pruner", "85.7"), ("fastv", "34.5")),
    ),
    PaperTable(
        "The same methods in different papers, LLaVA-1.5-7B, % of unpruned at 192 / 128 / 64 tokens",
        "own: the method's paper; copied: as printed in HoloV's table (arXiv 2510.02912), taken over from others; "
        "re-run: RESTORE (arXiv 2606.01711), official code in one environment",
        "Between 8 and 10 benchmarks, not the same ones. It shows how far apart papers are about one and the same "
        "method, and why no number of this section should be compared with one from another table.",
        ("method", "own", "copied", "re-run"),
        (
            ("tome", "", "88.8 / 80.4 / 70.1", "96.9 / 95.1 / 91.6"),
            ("fastv", "", "90.5 / 85.4 / 76.7", "96.0 / 91.8 / 75.2"),
            ("pyramiddrop", "", "96.7 / 94.9 / 77.5", "96.8 / 84.5 / 80.9"),
            ("visionzip", "", "98.1 / 97.2 / 94.5", "96.8 / 95.6 / 93.0"),
            ("dart", "98.8 / 98.0 / 93.7", "98.5 / 97.5 / 93.9", ""),
            ("divprune", "", "", "96.9 / 96.3 / 93.8"),
            ("vispruner", "", "", "97.5 / 96.3 / 92.8"),
            ("holov", "99.2 / 98.0 / 95.8", "", "96.5 / 95.5 / 92.2"),
            ("vscan", "99.0 / 98.8 / 96.7", "", ""),
        ),
    ),
    PaperTable(
        "Claims of newer papers, LLaVA-1.5-7B, % of unpruned",
        "TOPS (arXiv 2606.27161) and EADP (arXiv 2607.02484), each from its own paper",
        "Each on benchmarks of its own choice.",
        ("method", "128 tokens", "64 tokens", "32 tokens"),
        (("tops", "98.3", "97.1", "94.6"), ("eadp", "97.8", "95.8", "93.8")),
    ),
)
