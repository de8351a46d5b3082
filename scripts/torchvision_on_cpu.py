"""Make a torchvision that was built for CUDA importable beside a torch that was not.

PyPI's torchvision cannot load its compiled operators then, yet its import goes on to describe two of them to torch,
which fails because nobody has declared them. So declare them, the first time that anything looks for torchvision.
What is written in Python, such as the transforms of image and video processors, then works; its operators still do not.

scripts/vllm_env.sh puts this file into an environment with a .pth file that imports it whenever Python starts; hence
no import of torch until it is needed.
"""

from __future__ import annotations

import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from typing import Any


class _Declare(importlib.abc.MetaPathFinder):
    """Finds nothing, and notices when torchvision is wanted."""

    def __init__(self) -> None:
        self.library: Any = None  # declarations last as long as the library that holds them
        self.done = False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname == "torchvision" and not self.done:
            self.done = True  # first: importing torch may look for torchvision again
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Declare())
