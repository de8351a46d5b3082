"""All tests that are marked as needing a GPU: kernels against the loop, no host wait, CUDA graphs, `torch.compile`.

They are run by pytest, or by plain functions where it is missing. A dry run has none of them; it compiles the kernels
for a GPU and compares them in Triton's interpreter instead.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .records import Journal, SkippedCase, ended_cases, read
from .runner import Case, first_line, leave_if_broken

ROOT = Path(__file__).resolve().parents[2]
# Modules of tests that compare the kernels in Triton's interpreter, and how many of their cases a dry run takes.
_INTERPRETED = {"selection.triton.test_greedy": 3, "importance.test_attention_triton": 4}


def cases(dry: bool) -> Iterator[Case]:
    """One for each file with such tests."""
    if dry:
        yield "kernels become machine code", _compile
        for module in _INTERPRETED:
            yield f"{module} in Triton's interpreter", partial(_interpret, module=module)
    for file in files():
        yield file, partial(_run, file=file)


def files() -> list[str]:
    """The test files in which something is marked so, relative to the checkout."""
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )


def _run(journal: Journal, file: str) -> None:
    if importlib.util.find_spec("pytest") is None:
        from . import without_pytest

        journal.skip(file, "not run by pytest, which is missing; run by plain functions instead")
        without_pytest.run(journal, ROOT / file)
        return
    import pytest

    arguments = [file, "-m", "gpu", "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    arguments += ["-p", "no:faulthandler", "--tb=short", "-q"]  # a hanging test is seen from outside
    os.chdir(ROOT)
    for more in ([], ["--noconftest"]):
        told = _Told(journal)
        status = pytest.main([*arguments, *more], plugins=[told])
        if told.collected or not told.broken:
            break
    if told.broken and not told.collected:
        journal.check(file, False, f"pytest could not read it: {told.broken[0]}")
    elif more:
        journal.skip(f"{file}: its conftest.py", "could not be imported, so the tests were run without it; see the log")
    elif status not in (0, 1, 5):
        journal.check(file, False, f"pytest ended with status {int(status)}; see the log")


class _Told:
    """A plug-in of pytest that writes down each test as it begins and ends."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._seen = journal, list[Any]()
        self._done = ended_cases(read(journal.path))
        self.collected, self.broken = 0, list[str]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what an earlier process has run."""
        self.collected += len(items)
        items[:] = [item for item in items if item.nodeid not in self._done]

    def pytest_collectreport(self, report: Any) -> None:
        """Files that cannot be imported."""
        if report.failed:
            self.broken.append(" ".join(str(report.longrepr).split())[-300:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """It is to blame from here on."""
        self._seen = []
        self._journal.start(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Setup, call and teardown come one by one."""
        self._seen.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The worst of the three counts."""
        failed = [one for one in self._seen if one.failed]
        skipped = [one for one in self._seen if one.skipped]
        if failed:
            self._journal.check(nodeid, False, _reason(failed[0]))
        elif skipped:
            self._journal.skip(nodeid, _reason(skipped[0]))
        else:
            self._journal.check(nodeid, True)
        leave_if_broken(self._journal)
        self._journal.end()


def _reason(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:300]


def _interpret(journal: Journal, module: str) -> None:
    """Some cases of a module that compares the kernels with torch in Triton's interpreter."""
    for package in ("triton", "pytest"):
        if importlib.util.find_spec(package) is None:
            raise SkippedCase(f"{package} is missing")
    few = f"import {module} as module; module.CASES = module.CASES[:{_INTERPRETED[module]}]; "
    few += "module.HALVES = getattr(module, 'HALVES', ())[-1:]; module.compare()"
    paths = [str(ROOT / "tests"), str(ROOT / "src")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", few], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    passed = done.returncode == 0 and "compared" in done.stdout
    journal.check(f"{module}: interpreted kernels equal torch", passed, "" if passed else done.stderr[-300:])


def _compile(journal: Journal) -> None:
    """For a Hopper GPU, at the sizes of small and large images."""
    if importlib.util.find_spec("triton") is None:
        raise SkippedCase("triton is missing")
    from triton_compiler import HOPPER, compile_for, kernels

    for name, kernel, arguments, block in kernels(blocks=(1, 1024), tiles=(64, 128), depths=(3584,)):
        try:
            made = compile_for(HOPPER, kernel, arguments, block)
        except Exception as error:
            traceback.print_exc()
            journal.check(name, False, first_line(error))
            continue
        journal.check(name, bool(made.asm["cubin"]), f"{made.metadata.shared} bytes of shared memory")
