"""Everything that only a GPU can show, in one run: tests, oracles, times beside their goals.

    PYTHONPATH=src python scripts/gpu_check.py --out results_here

runs from a checkout, without installing foveate, downloading anything or asking anything, and takes less than nine
minutes. Each part is a process of its own with a limit of time, so that one that crashes, hangs or is out of time loses
nothing of the others. The results are in `gpu_check.json` and `gpu_check.md`, written anew while the parts run, with
the hardware, the versions, and what passed, failed or was skipped, and why. `--dry` tries all parts on the CPU at tiny
sizes, the kernels in Triton's interpreter, in about a minute.

Exit status: 0 where all parts came to their end and no check failed; 1 where not; 2 without a GPU. A missed goal is a
finding, not a failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

_SCRIPT = Path(__file__).resolve()
ROOT = _SCRIPT.parents[1]
# Benchmarks first: `selection` is a module there, and a folder of tests.
_FOLDERS = [str(ROOT / name) for name in ("src", "benchmarks", "tests")]
sys.path[:0] = _FOLDERS

from on_gpu import machine, parts  # noqa: E402
from on_gpu.report import MARKDOWN, Results  # noqa: E402
from on_gpu.runner import Outcome, Part, supervise, work  # noqa: E402

_LEAST = 5.0  # seconds: a part is not begun with less
_LOG = "gpu_check.log"


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in parts.PARTS]
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="for all parts together; parts may take longer where there are more (default: 8.5)",
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some of {', '.join(names)}")
    default = os.environ.get("OUT") or str(ROOT / "build" / "gpu-check")
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of the results (default: $OUT)")
    parser.add_argument("--cache", type=Path, help="folder for compiled kernels (default: a temporary one)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        (part,) = (one for one in (parts.MACHINE, *parts.PARTS) if one.name == options.work)
        return work(part, options.journal, options.dry)
    chosen = [part for part in parts.PARTS if not options.only or part.name in options.only]
    return run(chosen, options.out, options.minutes, options.dry, options.cache)


def run(
    chosen: list[Part],
    out: Path,
    minutes: float,
    dry: bool,
    cache: Path | None = None,
    script: Path = _SCRIPT,
) -> int:
    """Run parts one after another until all are through or the minutes are over.

    Args:
        script: what a part's process runs with ``--work`` and ``--journal``; it begins with the part ``machine``.
    """
    deadline = time.monotonic() + 60 * minutes
    about = {**machine.commit_of(ROOT), "minutes": minutes, "dry": dry}
    results = Results(out, about, [Outcome(part.name, part.title) for part in chosen])
    signal.signal(signal.SIGTERM, _stop)  # what was found is on the disk; the part's process is ended
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        environment = _environment(cache or folder / "cache", dry)

        def one(part: Part, seconds: float) -> Outcome:
            def command(journal: Path) -> list[str]:
                asked = [sys.executable, str(script), "--work", part.name, "--journal", str(journal)]
                return [*asked, "--dry"] if dry else asked

            return supervise(part, command, folder, seconds, environment, results.put)

        found = one(parts.MACHINE, min(parts.MACHINE.seconds, deadline - time.monotonic()))
        results.machine = next((r["values"] for r in found.records if r["kind"] == "fact"), {"machine": found.reason})
        if not dry and not results.machine.get("cuda"):
            print("No CUDA device is here, so nothing can be measured; --dry tries all parts on the CPU.")
            print(_read(folder / f"{parts.MACHINE.name}.log"))
            return 2
        _keep_log(folder, parts.MACHINE, out)
        results.write()
        for number, part in enumerate(chosen):
            left = deadline - time.monotonic()
            if left < _LEAST:
                outcome = Outcome(part.name, part.title, "not run", f"no time is left of {minutes:g} minutes")
            else:
                print(f"{part.name}: {part.title} ...", flush=True)
                outcome = one(part, _seconds_for(chosen[number:], left))
                _keep_log(folder, part, out)
            results.put(outcome)
            words = f"{outcome.status}{outcome.reason and ': '}{outcome.reason}"
            print(f"{part.name}: {words} ({outcome.seconds:.0f} s)", flush=True)
    print(results.markdown())
    print(f"\nWritten: {out / MARKDOWN}")
    return 0 if results.passed else 1


def _seconds_for(parts: list[Part], left: float) -> float:
    """How long the first of the parts that are still to be run may take: its own limit, and more where there is more.

    What is left is enough for all limits or not: if it is, they grow alike; if not, what comes first is worth most.
    """
    first = parts[0].seconds
    return min(left, first * max(1.0, left / sum(part.seconds for part in parts)))


def _environment(cache: Path, dry: bool) -> dict[str, str]:
    """Of the parts: no network, nothing written but in the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    set_here = {
        "PYTHONPATH": os.pathsep.join([*_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "hub"),
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other packages' plug-ins import much, and some break
    }
    if dry:
        set_here |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **set_here}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _keep_log(folder: Path, part: Part, out: Path) -> None:
    """Append the end of a part's log to the one beside the results."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOG).open("a", encoding="utf-8") as log:
        log.write(f"===== {part.name}\n{_read(folder / f'{part.name}.log')[-500_000:]}\n")


def _stop(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
