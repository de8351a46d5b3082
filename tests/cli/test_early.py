"""What is refused before torch is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import foveate
from foveate.cli.early import complete_method, known_methods

WRONG = [
    ["ask", "none.png", "why?"],
    ["ask", "none.png", "why?", "--method", "idprunner"],
    ["ask", "none.png", "why?", "--method", "idpruner,divprun"],
    ["ask", "none.png", "why?", "--keep", "25%,200%"],
    ["ask", "none.png", "why?", "--model", "testbed-lava"],
    ["ask", "none.png", "why?", "--dtype", "float3"],
    ["ask", "none.png", "why?", "--device", "cpu", "--device-map", "auto"],
    ["ask", "none.png", "why?", "--video", "clip"],
    ["ask", __file__, "why?", "--model", ""],
    ["ask", __file__, "why?", "--model", __file__],
    ["ask", __file__, "why?", "--model", str(Path(__file__).parent)],
    ["ask", __file__, "why?", "--set", "balance"],
    ["ask", __file__, "why?", "--scope", "clip"],
    ["ask", __file__, " "],
    ["batch", "none.jsonl", "--set", "balance"],
    ["batch", "none.jsonl", "--scope", "clip"],
    ["view", "none.png", "--methods", "idprunner"],
    ["view", "none.png"],
    ["eval", "--suite", "testbed", "--methods", "idprunner"],
    ["eval", "--suite", "testbed", "--keep", "many"],
    ["eval", "--suite", "testbed", "--model", "./nowhere"],
    ["eval"],
    ["eval", "--dataset", "none.jsonl"],
    ["batch", "none.jsonl", "--method", "idprunner"],
    ["batch", "none.jsonl", "--keep", "0"],
    ["check", "testbed-lava"],
    ["calibrate", "testbed-lava", "--images", "testbed"],
    ["train", "scorer", "--model", "testbed-lava", "--data", "testbed", "-o", "out"],
    ["methods", "idprunner"],
]
CODE = """
import json, sys
from typer.testing import CliRunner
from foveate.cli import app
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and result.stderr.startswith("foveate: "), (command, result.output)
    assert not {"torch", "transformers"} & set(sys.modules), command
"""


def test_mistakes_are_told_before_torch_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(WRONG)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_names_are_those_of_the_registry() -> None:
    assert set(foveate.method_names()) <= set(known_methods())
    assert set(complete_method("idpruner,divp")) == {"idpruner,divprune"}


def test_help_is_whole_in_a_narrow_terminal() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "foveate", "ask", "-h"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "40"},
    ).stdout
    assert "--methods, --method" in shown and "--max-new-tokens" in shown and "…" not in shown
