"""A trained model of the testbed as a folder that ``from_pretrained`` loads, with a card of its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...files import write_text
from ...testbed.architectures import WORDS_IN_ANSWER, image_processor
from ...testbed.procedural import DATA_VERSION

_VIDEO = {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False, "fps": 2.0}


def export(model: Any, tokenizer: Any, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write weights in bfloat16, tokenizer with chat template, image processor and the card.

    Args:
        model: in float32; it is not changed.
        tokenizer: of the testbed.
        name: ``"llava"`` or ``"qwen2.5-vl"``.
        folder: made if it is not there.
        facts: for the card: seed, hours, steps, accuracies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.generation_config.max_new_tokens = WORDS_IN_ANSWER
    model.save_pretrained(folder, state_dict=weights)
    images = image_processor(name)
    tokenizer.save_pretrained(folder)
    if name == "llava":
        from transformers import LlavaProcessor

        LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=model.config.vision_config.patch_size,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        ).save_pretrained(folder)
    else:  # transformers' own processor of this family cannot be made without torchvision: its parts are written
        images.save_pretrained(folder)
        images_config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        shared = {
            key: value for key, value in images_config.items() if key not in ("image_processor_type", "processor_class")
        }
        _write(folder / "video_preprocessor_config.json", shared | _VIDEO)
        _write(folder / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"})
    write_text(folder / "README.md", card(name, facts))
    _write(folder / "training.json", {"model": name, "data_version": DATA_VERSION, **facts})


def card(name: str, facts: Mapping[str, Any]) -> str:
    """The model card."""
    lines = "\n".join(f"| {key} | {_format_fact(value)} |" for key, value in facts.items())
    return f"""# {name} of foveate's testbed

Trained from scratch by `foveate train testbed --model {name} --seed {facts["seed"]}` on procedural pictures of at most
112 x 112 pixels, and on nothing else: it knows a few hundred words and answers only questions such as the testbed asks.
It serves to compare methods that prune visual tokens. No token was dropped or pruned in training; pictures came in many
sizes.

| fact | value |
|---|---|
| data version | {DATA_VERSION} |
{lines}
"""


def _format_fact(value: Any) -> str:
    return ", ".join(f"{name} {part:.3f}" for name, part in value.items()) if isinstance(value, Mapping) else str(value)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
