"""Releases of transformers: which are tested, the warning for others, and both names of the KV cache."""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

import foveate
from foveate.runtime import compat
from foveate.runtime.compat import TESTED, cache_of_output
from tiny_models import Zoo

from .helpers import cached, gap, generate, logits, single

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = map(Version, TESTED)
# As compat reads it: transformers puts another module object in its own place when its classes are first used, so the
# one that this file has imported need not be the same.
RELEASE = "foveate.runtime.compat.transformers.__version__"


@pytest.fixture
def as_if_first() -> Iterator[None]:
    """As in a process that has not warned yet."""
    compat._warn_of.cache_clear()
    yield
    compat._warn_of.cache_clear()


def pinned(package: str) -> Version:
    (found,) = re.findall(rf"^{package}==(.+)$", (ROOT / "scripts" / "constraints.txt").read_text(), flags=re.M)
    return Version(found)


def test_the_oldest_is_the_one_that_pip_lets_in() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers>={TESTED[0]}" in dependencies


def test_the_pinned_one_lies_between() -> None:
    assert OLDEST <= pinned("transformers") < Version(f"{NEWEST.major}.{NEWEST.minor + 1}")


def test_the_documents_name_them() -> None:
    for name in ("README.md", "CHANGELOG.md"):
        assert f"{TESTED[0]} to {TESTED[1]}" in " ".join((ROOT / name).read_text().split()), name


def after(version: Version, minor: int) -> str:
    return f"{version.major}.{version.minor + minor}"


@pytest.mark.parametrize(
    "version", [f"{v}{end}" for v in TESTED for end in (".0", ".3", ".0.dev0", ".0rc1", ".1.post2")]
)
def test_no_warning_within(version: str, as_if_first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RELEASE, version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.warn_if_untested()


OUTSIDE = [f"{v}{end}" for v in (after(OLDEST, -1), after(NEWEST, 1)) for end in (".0", ".9", ".0.dev0", ".0rc1")]


@pytest.mark.parametrize("version", [*OUTSIDE, f"{NEWEST.major + 1}.0.0", f"{OLDEST.major - 1}.57.6"])
def test_outside_it_warns_once(version: str, llava: Zoo, as_if_first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RELEASE, version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for keep in (0.5, 0.25):
            with foveate.prune(llava.model, "divprune", keep=keep):
                logits(llava, single(llava))
    (message,) = [str(w.message) for w in caught if "foveate is tested" in str(w.message)]
    assert f"transformers {TESTED[0]} to {TESTED[1]}" in message
    assert version in message


@pytest.mark.parametrize("attach", [True, False], ids=["prune", "prune_inputs"])
def test_the_warning_names_the_line_that_called(
    attach: bool, llava: Zoo, as_if_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RELEASE, after(NEWEST, 1) + ".0")
    with pytest.warns(UserWarning, match="foveate is tested") as caught:
        if attach:
            foveate.prune(llava.model, "divprune", keep=0.5).detach()
        else:
            foveate.prune_inputs(llava.model, single(llava), "divprune", keep=0.5)
    assert [w.filename for w in caught if "foveate is tested" in str(w.message)] == [__file__]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["divprune", "pyramiddrop"])
def test_the_name_of_old_serves_too(zoo: Zoo, method: str) -> None:
    """A program that still says `past_key_values` gets what one that says `cache` does, where both are understood."""
    inputs = single(zoo)
    ids = torch.cat([inputs["input_ids"], torch.tensor([[20, 21]])], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    turn |= {k: v for k, v in inputs.items() if k == "image_grid_thw"}
    if "mm_token_type_ids" in inputs:
        turn["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 2))
    with foveate.prune(zoo.model, method, keep=0.4), torch.no_grad():
        one, other = (cache_of_output(zoo.model(**inputs)) for _ in range(2))
        assert gap(generate(zoo, turn, **cached(one)), generate(zoo, turn, past_key_values=other)) == 0


def lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_an_empty_cache_by_the_name_of_old(zoo: Zoo) -> None:
    inputs, (one, other) = single(zoo), (transformers.DynamicCache() for _ in range(2))
    with foveate.prune(zoo.model, "pyramiddrop", keep=0.4), torch.no_grad():
        expected = zoo.model(**inputs, **cached(one)).logits
        assert torch.equal(zoo.model(**inputs, past_key_values=other).logits, expected)
    assert lengths(one) == lengths(other)
    assert min(lengths(one)) < inputs["input_ids"].shape[1]
