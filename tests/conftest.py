"""Shared test set-up: offline, few threads, tiny models built once."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import tiny_models as zoo_module
from tiny_models import Zoo

torch.set_num_threads(1)  # tiny models: threads cost more than they give, above all beside other workers
gc.disable()  # until all is imported and collected

# Where there is no GPU, seeding those that might appear takes longer than many a test.
_GENERATORS = torch if torch.cuda.is_available() else torch.default_generator


def pytest_collection_finish() -> None:
    """What has been imported stays to the end, so that the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    _GENERATORS.manual_seed(0)


@pytest.fixture(scope="session")
def llava() -> Zoo:
    return zoo_module.llava()


@pytest.fixture(scope="session")
def qwen() -> Zoo:
    return zoo_module.qwen2_5_vl()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a small Ray cluster that this process is connected to; tests without Ray are skipped."""
    pytest.importorskip("ray.data", reason="needs Ray: make test-ray")
    from ray_machines import two_machines

    with two_machines() as address:
        yield address


@pytest.fixture(params=zoo_module.MAKERS, ids=lambda make: make.__name__)
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """Each tiny model in turn."""
    return request.param()
