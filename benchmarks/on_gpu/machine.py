"""The hardware and the software that figures belong to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .records import Journal
from .runner import Case

_PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest", "flash_attn", "kernels", "vllm")


def cases(dry: bool) -> Iterator[Case]:
    """What is here."""
    yield "hardware and versions", _look


def _look(journal: Journal) -> None:
    journal.write("fact", values={**_gpu(), **_software()})


def _gpu() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cuda": torch.cuda.is_available(), "cuda version": torch.version.cuda}
    if found["cuda"]:
        about = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        found |= {
            "GPU": about.name,
            "memory MiB": total // 2**20,
            "free MiB": free // 2**20,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "cuDNN": torch.backends.cudnn.version(),
        }
        if tool := shutil.which("nvidia-smi"):
            query = [tool, "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=30)
            found["driver, clock, highest clock, power limit"] = done.stdout.strip().splitlines()[0:1]
    return found


def _software() -> dict[str, Any]:
    return {"Python": platform.python_version(), "processor": _processor(), "cores": os.cpu_count(), **_versions()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not there"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit_of(root: Path) -> dict[str, str]:
    """The commit of a checkout, where git knows it, and what its sources are by their content, in any case."""
    content = blake2b(digest_size=8)
    for path in sorted((root / "src").rglob("*.py")):
        content.update(str(path.relative_to(root)).encode() + path.read_bytes())
    found = {"commit": "not known (no git here)", "sources": content.hexdigest()}
    try:
        run = {"cwd": root, "capture_output": True, "text": True, "timeout": 20, "check": True}
        found["commit"] = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        status = subprocess.run(["git", "status", "--porcelain", "src"], **run).stdout  # type: ignore[call-overload]
        found["commit"] += ", and changes in src/" if status.strip() else ""
    except (OSError, subprocess.SubprocessError):
        pass
    return found
