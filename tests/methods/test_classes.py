"""Every method's class is an attribute of `foveate.methods`, which imports it when it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
from foveate import methods
from foveate.methods import get_method, method_names
from foveate.methods.toolkit.registry import method_class

OWN = [name for name in method_names() if method_class(name).__module__ == f"foveate.methods.{name}"]


def test_all_of_foveates_own_are_there() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(OWN) == files


@pytest.mark.parametrize("name", OWN)
def test_a_methods_class_is_found_by_its_name(name: str) -> None:
    cls = method_class(name)
    assert getattr(methods, cls.__name__) is cls and cls.__name__ in dir(methods)
    assert cls() == get_method(name)


def test_type_checkers_see_the_same_classes() -> None:
    tree = ast.parse(Path(methods.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: node.names[0].name for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == {name: method_class(name).__name__ for name in OWN}


def test_a_class_takes_hyperparameters_and_can_be_pruned_with() -> None:
    method = foveate.methods.IDPruner(balance=0.7)
    assert method == get_method("idpruner", balance=0.7)
    with pytest.raises(foveate.MethodError, match="balance"):
        foveate.methods.IDPruner(balance=7)


def test_one_class_imports_one_module() -> None:
    code = (
        "import sys, foveate; before = set(sys.modules); foveate.methods.DivPrune; "
        "print(*sorted(name for name in set(sys.modules) - before if name.count('.') == 2 and '.methods.' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["foveate.methods.divprune", "foveate.methods.toolkit"]


@pytest.mark.parametrize("name", ["Nothing", "idPruner", "Toolkit", "__path_of__", "Method_"])
def test_other_names_are_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'foveate.methods' has no attribute '{name}'"):
        getattr(methods, name)
