"""``foveate leaderboard``: one page of several evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError
from .paths import FORCE, require_file, require_folder, require_own


def leaderboard(
    results: Annotated[
        Path, typer.Argument(help="A folder with one folder of results for each evaluation, or what lmms-eval wrote.")
    ] = Path("results"),
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "docs/notes/leaderboard.md"
    ),
    force: FORCE = False,
) -> None:
    """Make one page of several evaluations, such as those in `results/`, with a full report of each.

    What lmms-eval wrote with --model foveate or foveate_vllm, --output_path and --log_samples is read, too.
    """
    from ..evaluation.leaderboard import read_evaluations, result_folders, write_leaderboard
    from ..evaluation.plots import PICTURES, require_extra
    from ..evaluation.report import REPORT
    from ..evaluation.results import RESULTS, TIMED

    require_extra()
    folders = result_folders(results)
    require_file(output, "-o", "leaderboard.md", (one / name for one in folders for name in (RESULTS, TIMED)), force)
    if output.suffix == "":
        raise InputError(f"-o {output} has no suffix, and reports go into a folder of that name; give {output}.md.")
    require_folder(aside := output.with_suffix(""), "-o")
    for place in (aside / name for name in read_evaluations(results)):
        if not force and not (place / REPORT).is_file():  # a report tells whose the pictures beside it are
            for name in PICTURES:
                require_own(place / name, "-o")
        require_file(place / REPORT, "-o", REPORT, force=force)
    for path in write_leaderboard(results, output):
        typer.echo(str(path))
