"""What vLLM must say: the same checkpoint, prompt and pictures in transformers, pruned by foveate's own runtime."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image

import foveate
from foveate.config import scope_of

from .tiny import maker

STEPS = 6
# What stands around a clip's placeholder, by the beginning of a model type.
_AROUND_CLIPS = {
    "glm": ("<|begin_of_video|>", "<|end_of_video|>"),
    "qwen2_5_omni": ("<|vision_bos|>", "<|vision_eos|>"),
    "qwen": ("<|vision_start|>", "<|vision_end|>"),
}


@dataclass(frozen=True)
class Case:
    """One request: a text with pictures (or one clip) before it, and what its arguments ask of foveate.

    `between` is the text between two pictures.
    """

    images: tuple[Image.Image, ...] = ()
    text: str = "what is in the picture?"
    clip: Any = None
    sound: Any = None  # at 16 kHz
    asked: dict[str, Any] = field(default_factory=dict)
    between: str = ""


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise, so that no two tokens are alike."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_url(image: Image.Image) -> str:
    """An image as it travels in a request."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def clip(frames: int, height: int, width: int, seed: int = 0) -> Any:
    """Noise (T, H, W, 3) and what a decoder would say of it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    known = {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames))}
    return pixels, {**known, "video_backend": "opencv", "do_sample_frames": False}


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, their log-probabilities, and the length of the prompt as the language model saw it."""

    tokens: list[int]
    logprobs: list[float]
    prompt: int


class Oracle:
    """The checkpoint at `path` in transformers."""

    def __init__(self, name: str, path: Path, dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        self.processor = tf.AutoProcessor.from_pretrained(path)
        config = tf.AutoConfig.from_pretrained(path)
        config = getattr(config, "thinker_config", config)
        self.model = tf.AutoModelForImageTextToText.from_pretrained(path, config=config, dtype=dtype).eval()
        self.zoo = maker(name)(16)  # the names of tokens are those of the wide one
        if name == "paddleocr_vl":  # between the same positions vLLM interpolates otherwise, pruned or not
            self.model.model.visual.vision_model.embeddings.interpolation_align_corners = False
        self.placeholders = list(self.zoo.visual_ids)
        if hasattr(self.zoo.tokenizer, "audio_token_id"):
            self.placeholders.append(self.zoo.tokenizer.audio_token_id)
        self.end = self.zoo.tokenizer.eos_token_id
        around = next((both for start, both in _AROUND_CLIPS.items() if self.zoo.name.startswith(start)), ("", ""))
        self._clip = getattr(self.processor, "video_token", "").join(around)

    @property
    def allowed(self) -> list[int]:
        """What random models may emit: no placeholders, nor the end of a text, left out until all steps are done."""
        vocabulary = set(range(self.model.config.get_text_config().vocab_size))
        return sorted(vocabulary - {*self.placeholders, self.end})

    def takes(self, case: Case) -> bool:
        """Whether transformers can: GLM-4.1V and its kin take images or clips, never both."""
        return case.clip is None or (bool(self._clip) and not (case.images and self.zoo.name.startswith("glm")))

    def prompt(self, case: Case) -> str:
        """The text with its placeholders."""
        clip = "" if case.clip is None else self._clip
        heard = (
            "" if case.sound is None or case.asked.get("use_audio_in_video") else "<|audio_bos|><|AUDIO|><|audio_eos|>"
        )
        return "<s>" + case.between.join([self.zoo.image] * len(case.images)) + clip + heard + case.text

    def answer(self, case: Case) -> Answer:
        """What the pruned model answers in transformers."""
        given: dict[str, Any] = {"text": [self.prompt(case)], "return_tensors": "pt"}
        if case.images:
            given["images"] = list(case.images)
        if case.clip is not None:
            pixels, known = case.clip
            known = {key: value for key, value in known.items() if key != "do_sample_frames"}
            given |= {"videos": [pixels], "video_metadata": [known], "do_sample_frames": False}
        if case.sound is not None:
            given["audio"] = [case.sound]
        inputs = self.processor(**given, add_special_tokens=False)
        inputs = inputs.to(dtype=self.model.dtype)  # Llama 4's pixels are of bfloat16
        settings: dict[str, Any] = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
        settings |= {"suppress_tokens": self.placeholders, "return_dict_in_generate": True, "output_logits": True}
        keep = case.asked.get("foveate_keep", 1.0)
        method = case.asked.get("foveate_method", "idpruner")
        positions = "original" if self.zoo.mrope else "compact"
        scope = case.asked.get("foveate_scope", "frame" if self.zoo.name.startswith(("qwen3_", "glm")) else "image")
        scope = scope_of(scope) if isinstance(scope, dict) else scope
        with torch.no_grad(), foveate.prune(self.model, method, keep=keep, scope=scope, positions=positions) as pruning:
            out = self.model.generate(**inputs, **settings)
            seen = case.images or case.clip is not None
            length = pruning.report().prompt_tokens[0] if seen else inputs["input_ids"].shape[1]
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logprobs = [step[0].log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens, strict=True)]
        return Answer(tokens, logprobs, length)
