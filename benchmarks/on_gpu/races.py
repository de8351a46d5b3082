"""compute-sanitizer's racecheck over one small launch of each kernel, where the tool is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .records import Journal, SkippedCase
from .runner import Case

_TOOLS = ("racecheck", "memcheck")
_PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")


def cases(dry: bool) -> Iterator[Case]:
    """Racecheck first; memory accesses beyond their bounds afterwards."""
    for tool in _TOOLS:
        yield tool, partial(_check, tool=tool, dry=dry)


def _check(journal: Journal, tool: str, dry: bool) -> None:
    if dry:
        launch("cpu")
        raise SkippedCase("a dry run; the launches themselves were made on the CPU")
    program = shutil.which("compute-sanitizer") or next((one for one in _PLACES if Path(one).exists()), None)
    if program is None:
        raise SkippedCase("compute-sanitizer is not here")
    code = "from on_gpu.races import launch; launch('cuda'); print('launched')"
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=os.environ)
    print(done.stdout[-20000:], done.stderr[-5000:])
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    told = "; ".join(summary) or (done.stderr or done.stdout)[-200:]
    if "launched" not in done.stdout and done.returncode != 9:  # the tool itself does not work here
        raise SkippedCase(f"{tool} did not run the program: {told}")
    journal.check(f"{tool} finds nothing", done.returncode == 0, told)


def launch(device: str) -> None:
    """Each kernel once: selectors on a padded batch of two images, in both types, and an attention row."""
    import torch

    import selection
    from foveate.importance import attention_row

    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 300, 64, generator=generator).to(device), torch.rand(2, 300, generator=generator).to(device)
    for features in (x, x.bfloat16()):
        for name in selection.SELECTORS:
            selection.runs(name, features, w, 40)[1]()
    attention_row(x[:, :4, :32], x.view(2, 300, 2, 32).transpose(1, 2), 0.2, w > 0.1)
    if device == "cuda":
        torch.cuda.synchronize()
