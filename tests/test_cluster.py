"""How a cluster is divided among workers, and what is said where there is none."""

from __future__ import annotations

import sys

import pytest

from foveate.cluster import Cluster, ClusterError, Workers, connect


@pytest.mark.parametrize(
    ("machines", "asked", "found"),
    [
        ([(2, 0)], None, Workers(1, 2, 0)),
        ([(2, 0)], 2, Workers(2, 1, 0)),
        ([(8, 0), (4, 0)], None, Workers(2, 4, 0)),
        ([(8, 0), (4, 0)], 3, Workers(3, 4, 0)),
        ([(8, 0), (0, 0)], None, Workers(1, 8, 0)),
        ([(16, 4), (16, 2)], None, Workers(6, 4, 1)),
        ([(4, 0), (16, 2)], None, Workers(2, 8, 1)),
        ([(16, 4)], 2, Workers(2, 8, 1)),
    ],
)
def test_a_cluster_is_divided(machines: list[tuple[int, int]], asked: int | None, found: Workers) -> None:
    assert Cluster(machines).divide(asked) == found


@pytest.mark.parametrize("machines", [[(2, 0)], [(2, 0), (0, 0)], [(16, 2)], [(1, 3)]])
def test_more_workers_than_there_is_room_for_are_refused(machines: list[tuple[int, int]]) -> None:
    with pytest.raises(ClusterError, match=r"do not do for 3 workers; ask for fewer by --workers\."):
        Cluster(machines).divide(3)


def test_without_ray_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"Ray cannot be imported .*pip install -e '\.\[ray\]'\."), connect():
        pass
