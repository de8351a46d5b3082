"""A task of lmms-eval on this machine: the scenes that come with foveate, as a data set and a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASK = "foveate_scenes"
_FUNCTIONS = """
from foveate.data.metrics import agrees


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    right = any(agrees("exact", results[0], one) for one in doc["answer"])
    return {"exact_match": float(right), "scene": doc["scene"]}
"""
_YAML = """
task: {task}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function scenes.doc_to_visual
doc_to_text: !function scenes.doc_to_text
doc_to_target: answer
process_results: !function scenes.process_results
cluster_key: scene
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_task(samples: Any, folder: Path) -> Path:
    """Write the task of some samples with one picture each; returns the folder for ``--include_path``."""
    from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

    rows = {
        "image": [one.pictures[0] for one in samples],
        "question": [one.question for one in samples],
        "answer": [list(one.answers) for one in samples],
        "scene": [one.group for one in samples],
    }
    texts = {"question": Value("string"), "answer": Sequence(Value("string")), "scene": Value("string")}
    made = Dataset.from_dict(rows, features=Features({"image": Image(), **texts}))
    DatasetDict({"test": made}).save_to_disk(str(folder / "data"))
    (folder / "scenes.py").write_text(_FUNCTIONS)
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, data=folder / "data"))
    return folder
