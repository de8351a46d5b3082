"""Test files as scripts, in a process in which Triton interprets its kernels on a CPU: it chooses when imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def interpreted(file: str) -> subprocess.CompletedProcess[str]:
    """Run `file`, which finds the modules beside this one."""
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, timeout=300)
