"""Models that come with foveate, by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import foveate
from foveate.data import load_shipped, shipped_models
from foveate.errors import ModelError


def test_an_unknown_name_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"'testbed-lava' comes with foveate; did you mean 'testbed-llava'\?"):
        load_shipped("testbed-lava")


def test_the_testbed_has_them_too() -> None:
    assert foveate.testbed.shipped_models is shipped_models and foveate.testbed.load_shipped is load_shipped


def test_the_names_of_data_load_on_first_use() -> None:
    code = (
        "import sys, foveate.data\nassert foveate.data.read_samples and foveate.data.shipped_models()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "assert all(getattr(foveate.data, name) is not None for name in foveate.data.__all__)\n"
        "assert set(foveate.data.__all__) <= set(dir(foveate.data))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'bundled'"):
        foveate.data.bundled  # noqa: B018
