"""Small checkpoints on disk, as people have them: with a processor, a tokenizer and a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_models as zoo_module
from foveate.testbed import shipped_models

QWEN_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)

INTERNVL_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def llava(folder: Path, dtype: str = "float32") -> Path:
    """testbed-llava as a LLaVA checkpoint of one's own, without the scorer and the prior that come with it."""
    shutil.copytree(shipped_models()["testbed-llava"], folder, ignore=shutil.ignore_patterns("foveate-*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return folder


def qwen(folder: Path, zoo: zoo_module.Zoo | None = None) -> Path:
    """The tiny random Qwen2.5-VL, or another of its processor, saved as its checkpoints on the hub are."""
    zoo = zoo_module.qwen2_5_vl() if zoo is None else zoo
    for part in (zoo.model, zoo.tokenizer, zoo.processor.image_processor):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "Qwen2_5_VLProcessor"}))
    return folder


def internvl(folder: Path) -> Path:
    """The tiny random InternVL, saved as its checkpoints on the hub are; images are cut into at most six tiles."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    zoo = zoo_module.internvl()
    images = GotOcr2ImageProcessorPil(size={"height": 112, "width": 112}, min_patches=1, max_patches=6)
    for part in (zoo.model, zoo.tokenizer, images):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "InternVLProcessor"}))
    return folder
