"""`scripts/gpu_check.py`: what one part finds is kept, whatever becomes of its process and of the other parts."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # behind tests/, which has a `selection`, too

from on_gpu.records import Journal, ended_cases, open_cases, read
from on_gpu.report import JSON, MARKDOWN
from on_gpu.runner import Part
from on_gpu.without_pytest import run as run_by_functions

ROOT = Path(__file__).parents[1]
CHECK = runpy.run_path(str(ROOT / "scripts" / "gpu_check.py"))

# A part's process, without PyTorch.
PROGRAM = f"""
import argparse, os, sys, time
sys.path.append({str(ROOT / "benchmarks")!r})
from on_gpu.records import SkippedCase
from on_gpu.runner import Part, work

def fine(journal):
    journal.row("Times", N=64, ms=1.23456)
    journal.check("fine", True)
    journal.goal("fast", 2.0, 1.0, "ms")

def raises(journal):
    raise ValueError("what went | wrong")

def skips(journal):
    raise SkippedCase("not here")

def hangs(journal):
    journal.check("so far", True)
    time.sleep(600)

def breaks(dry):
    raise ImportError("no such module")

def facts(journal):
    journal.write("fact", values={{"cuda": "no gpu" not in sys.argv, "GPU": "A"}})

def late(journal):
    for _ in range(600):
        journal.check("one more", True)
        time.sleep(0.05)

CASES = {{
    "machine": [("facts", facts)],
    "bad": [("fine", fine), ("raises", raises), ("aborts", lambda journal: os.abort()), ("skips", skips),
            ("leaves", lambda journal: os._exit(3)), ("hangs", hangs), ("last", fine)],
    "late": [("late", late)],
    "good": [("fine", fine)],
}}
parser = argparse.ArgumentParser()
for name in ("--work", "--journal"):
    parser.add_argument(name)
parser.add_argument("--dry", action="store_true")
asked = parser.parse_args()
cases = breaks if asked.work == "broken" else lambda dry: CASES[asked.work]
sys.exit(work(Part(asked.work, "", 9, 9, cases), __import__("pathlib").Path(asked.journal), asked.dry))
"""


def part(name: str, seconds: float = 60) -> Part:
    return Part(name, f"the {name} one", seconds, 0.7 if name == "bad" else 30, lambda dry: ())


def check(tmp_path: Path, *parts: Part, program: str = PROGRAM) -> tuple[int, dict[str, Any], str]:
    script, out = tmp_path / "program.py", tmp_path / "out"
    script.write_text(program)
    status = CHECK["run"](list(parts), out, 1.0, False, tmp_path / "cache", script)
    return status, json.loads((out / JSON).read_text()), (out / MARKDOWN).read_text()


def test_nothing_is_lost(tmp_path: Path) -> None:
    status, found, page = check(tmp_path, part("bad"), part("broken"), part("late", 0.6), part("good"))
    assert status == 1 and not found["passed"]
    bad, broken, late, good = found["parts"]
    assert [one["status"] for one in found["parts"]] == ["finished", "failed", "out of time", "finished"]
    told = {(r["case"], r["name"]): (r["status"], r["detail"]) for r in bad["records"] if r["kind"] == "check"}
    assert told == {
        ("fine", "fine"): ("passed", ""),
        ("raises", "raises"): ("failed", "ValueError: what went | wrong"),
        ("aborts", "aborts"): ("failed", "the process was ended by SIGABRT"),
        ("skips", "skips"): ("skipped", "not here"),
        ("leaves", "leaves"): ("failed", "the process ended with status 3"),
        ("hangs", "so far"): ("passed", ""),
        ("hangs", "hangs"): ("failed", "the process said nothing for 1 s, and was ended"),
        ("last", "fine"): ("passed", ""),
    }
    assert "before its first case" in broken["reason"] and "late" in late["reason"]
    assert 1 <= len([r for r in late["records"] if r["kind"] == "check"]) < 600
    assert good["seconds"] > 0 and found["machine"] == {"cuda": True, "GPU": "A"}
    assert len(found["sources"]) == 16
    assert "| fast | <= 1 ms | 2 ms | missed |" in page and "| 64 | 1.235 |" in page
    assert "| bad | raises | ValueError: what went \\| wrong |" in page
    log = (tmp_path / "out" / "gpu_check.log").read_text()
    assert "===== bad" in log and "ImportError: no such module" in log


def test_a_run_that_passes_and_one_without_a_gpu(tmp_path: Path) -> None:
    status, found, _ = check(tmp_path, part("good"))
    assert status == 0 and found["passed"]  # a goal that is missed is a finding
    status, found, _ = check(tmp_path, part("good"), program=PROGRAM.replace('"no gpu" not in sys.argv', "False"))
    assert status == 2


def test_what_no_time_is_left_for_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECK["run"].__globals__, "_LEAST", 3600.0)
    status, found, page = check(tmp_path, part("good"))
    assert status == 1 and found["parts"][0]["status"] == "not run"
    assert "no time is left of 1 minutes" in page


@pytest.mark.parametrize(
    ("seconds", "left", "expected"),
    [((90,), 600, 600), ((90,), 60, 60), ((180, 90), 200, 180), ((180, 90), 540, 360), ((180, 90), 100, 100)],
    ids=str,
)
def test_minutes_are_split_by_the_limits_of_the_parts(seconds: Any, left: float, expected: float) -> None:
    """More than enough is given to all alike, and of too little the first one gets its own limit."""
    parts = [part("good", limit) for limit in seconds]
    assert CHECK["run"].__globals__["_seconds_for"](parts, left) == pytest.approx(expected)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.start("outer")
    journal.start("inner")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"kind": "ch')
    assert open_cases(read(tmp_path / "journal")) == ["outer", "inner"]


TESTS = """
import pytest

pytestmark = pytest.mark.gpu

@pytest.mark.parametrize(("a", "b"), [(1, 2), (3, 4)])
@pytest.mark.parametrize("c", [5], ids=str)
def test_sums(a, b, c):
    assert a + b + c != 12

@pytest.mark.skipif(True, reason="never")
def test_skipped():
    raise AssertionError

def helper():
    raise AssertionError
"""


def test_tests_are_run_without_pytest(tmp_path: Path) -> None:
    file = tmp_path / "test_without_pytest_itself.py"
    file.write_text(TESTS)
    run_by_functions(Journal(tmp_path / "journal"), file)
    found = read(tmp_path / "journal")
    told = [(r["case"].partition("::")[2], r["status"]) for r in found if r["kind"] == "check"]
    assert told == [("test_sums[5-1-2]", "passed"), ("test_sums[5-3-4]", "failed"), ("test_skipped[]", "skipped")]
    assert len(ended_cases(found)) == 3 and sys.modules["pytest"] is pytest
