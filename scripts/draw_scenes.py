"""Draw the scenes that come with foveate into src/foveate/testbed/scenes, or into another folder.

Usage: python scripts/draw_scenes.py [FOLDER]; needs scikit-image, scikit-learn and matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

from foveate.testbed.shipped import FOLDER, draw, write


def main(folder: Path) -> None:
    """Draw them all, and say what is asked of which."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw()
    write(drawn, folder)
    for number, scene in enumerate(drawn):
        families = ", ".join(question.family for question in scene.questions)
        print(f"{number:02}.png: {scene.kind} on {scene.photo or 'paper'}; {families}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
