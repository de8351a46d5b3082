"""Every public name of `foveate.selection` has a docstring with an example that runs as it is printed."""

import doctest
import inspect

import pytest

from foveate import selection
from foveate.selection import batch, similarity

PUBLIC = [getattr(module, name) for module in (selection, batch, similarity) for name in module.__all__]


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_the_example_runs(public):
    names = vars(inspect.getmodule(public)).copy()
    cases = doctest.DocTestFinder(recurse=False).find(public, public.__name__, globs=names)
    results = [doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(case) for case in cases]
    assert sum(result.attempted for result in results) >= 2
    assert not any(result.failed for result in results)
