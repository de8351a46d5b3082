"""Rows about the drawn scenes, good ones and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

from foveate.testbed import scenes

BAD = {  # by line: the line, and what is said of it
    3: ('{"image": "0.png", "question', "this is not JSON"),
    6: (json.dumps({"image": "none.png", "question": "what?"}), "there is no image file at"),
    7: (json.dumps({"image": "torn.png", "question": "what?"}), "is damaged or incomplete"),
    9: (json.dumps({"image": "text.png", "question": "what?"}), "is not an image that Pillow can read"),
    11: (json.dumps({"image": "0.png", "qestion": "what?"}), "is 'qestion' misspelt?"),
    12: (json.dumps({"image": "0.png", "question": "what is <image>?"}), "the question holds '<image>'"),
    13: (json.dumps(["0.png", "what?"]), "this is not a JSON object"),
    15: (json.dumps({"image": "0.png", "video": "x", "question": "what?"}), 'give either "image" or "video".'),
    16: (json.dumps({"image": 7, "question": "what?"}), "picture 1 is not a path"),
    17: (json.dumps({"image": "https://example.org/0.png", "question": "what?"}), "is not a path; download it"),
    18: (json.dumps({"image": [], "question": "what?"}), "its list of pictures is empty"),
    19: (json.dumps({"image": "x" * 5000, "question": "what?"}), "cannot be opened"),
}


def write_rows(folder: Path, number: int, bad: bool = True) -> Path:
    """A JSONL file of so many lines, among them those of `BAD`, and an empty line before the last."""
    drawn = scenes()
    for place, scene in enumerate(drawn):
        scene.image.save(folder / f"{place}.png")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "text.png").write_text("no picture")
    asked = [(place, question.text) for place, scene in enumerate(drawn) for question in scene.questions]
    lines = []
    for line in range(1, number + 1):
        place, question = asked[line % len(asked)]
        good = json.dumps({"image": f"{place}.png", "question": question, "id": f"row-{line}"})
        lines.append(BAD[line][0] if bad and line in BAD else good)
    lines.insert(number - 1, "")
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path
