"""The package as users meet it: light to import, complete, and free of traces of the machine it was made on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import foveate

ROOT = Path(__file__).parent.parent


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, foveate; print(*sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    assert run_python(code) == ""


@pytest.mark.parametrize("name", foveate.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(foveate, name) is not None
    assert name in dir(foveate)


def test_all_is_exactly_the_lazy_and_the_eager_names() -> None:
    errors = {
        name
        for name, value in vars(foveate.errors).items()
        if isinstance(value, type) and issubclass(value, foveate.FoveateError)
    }
    assert set(foveate.__all__) == set(foveate._LAZY) | errors | {"__version__"}
    assert len(foveate.__all__) == len(set(foveate.__all__))


def test_rooms_are_reached_without_importing_them() -> None:
    assert run_python("import foveate; print(foveate.selection.mmr.__name__)") == "mmr"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'pruned'"):
        foveate.pruned  # type: ignore[attr-defined]  # noqa: B018


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert foveate.__version__ == project["version"]


def test_help_answers_without_torch() -> None:
    code = "import sys, foveate.cli; print(*sorted({'torch', 'transformers'} & sys.modules.keys()))"
    assert run_python(code) == ""


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = [b"/" + name + b"/" for name in (b"work", b"root")]
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    guilty = [str(path.relative_to(ROOT)) for path in files if any(needle in path.read_bytes() for needle in needles)]
    assert files
    assert guilty == []
