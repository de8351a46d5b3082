"""What stands beside the code: the image of a server, and how to cite."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import foveate
from foveate.methods.toolkit.registry import method_class

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_has_a_vllm_that_the_plugin_supports() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    least, below = re.fullmatch(r"vllm>=(\d+\.\d+),<(\d+\.\d+)", extras["vllm"][0]).groups()
    version = re.search(r"^ARG VLLM=v(\d+\.\d+)\.\d+$", DOCKERFILE, re.MULTILINE)[1]
    assert tuple(map(int, least.split("."))) <= tuple(map(int, version.split("."))) < tuple(map(int, below.split(".")))


def test_the_image_copies_what_it_needs_and_nothing_is_ignored_of_it() -> None:
    copied = [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
    let_through = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(copied) == let_through and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)


def test_the_citation_is_of_this_version_and_of_the_methods_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == foveate.__version__
    assert citation["license"] == "Apache-2.0"
    for name, reference in zip(("idpruner", "d2pruner"), citation["references"], strict=True):
        assert reference["identifiers"][0]["value"] == f"arXiv:{method_class(name).provenance.arxiv}"
