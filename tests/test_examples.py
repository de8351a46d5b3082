"""The examples run as they stand."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from foveate.methods.toolkit import registry

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    registry.method_names()  # loads them all
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what an example registers must not outlive it
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.slow
def test_the_package_of_a_method_passes_its_own_tests(tmp_path: Path) -> None:
    """As it would be where it is installed: its metadata, made from its pyproject.toml, lies beside its module."""
    package = ROOT / "examples" / "foveate_norm"
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tmp_path / "foveate_norm-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (group, entries), *others = project["entry-points"].items()
    lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    assert group == registry.ENTRY_POINTS and not others
    paths = os.pathsep.join([str(tmp_path), str(package), str(ROOT / "src")])
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", str(package / "tests")]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
