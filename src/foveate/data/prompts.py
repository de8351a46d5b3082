"""Questions about pictures as inputs of a model, whichever it is: one prompt with its own processor, then a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import FoveateError, ModelError
from .limits import check_question, explain_failure, fit_picture

FRAMES_A_SECOND = 2.0  # of every clip, whose frames come without their times


class Prompt(NamedTuple):
    """What is asked about which pictures: images, the frames of a clip, or none at all.

    Attributes:
        pictures: in the order in which the prompt shows them.
        question: asked behind the pictures; not read where `messages` are given.
        video: whether `pictures` are the frames of one clip.
        messages: a conversation to go on with, where one question behind its pictures does not do: each has a ``role``
            and a ``content``, a list of ``{"type": "text", "text": ...}`` and, in the place of pictures,
            ``{"type": "image"}``, or ``{"type": "video"}`` once.
    """

    pictures: Sequence[Image.Image]
    question: str
    video: bool = False
    messages: Sequence[Mapping[str, Any]] = ()

    @property
    def texts(self) -> list[str]:
        """All that is written in it, in order."""
        return [part["text"] for message in self.conversation() for part in message["content"] if "text" in part]

    def conversation(self) -> list[dict[str, Any]]:
        """As messages of a chat template, with the pictures in their places.

        Raises:
            ModelError: where `messages` have places for other pictures than there are.
        """
        left = [_clip(self.pictures)] if self.video else [_image(one) for one in self.pictures]
        if not self.messages:
            return [{"role": "user", "content": [*left, {"type": "text", "text": self.question}]}]
        places = [part["type"] for message in self.messages for part in message["content"] if part["type"] != "text"]
        if places != [one["type"] for one in left]:
            raise ModelError(
                f"the conversation has places for {', '.join(places) or 'no picture'}, but {len(left)} "
                f"{'clip' if self.video else 'images'} to show; give one place for each."
            )
        return [
            {**message, "content": [part if part["type"] == "text" else left.pop(0) for part in message["content"]]}
            for message in self.messages
        ]


def encode(model: nn.Module, processor: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Inputs of a batch, padded on the left, on the model's device and in its dtype.

    Raises:
        ModelError: when pictures of one batch cannot lie in one tensor, or a clip is shown to a model of images.
        PictureError: when a picture cannot be shown, or the processor cannot take it.
        QuestionError: when the question holds a model's placeholder.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    inputs = collate([encode_one(processor, prompt) for prompt in prompts], padding)
    return move_to_model(inputs, model)


def encode_one(processor: Any, prompt: Prompt) -> dict[str, Any]:
    """Inputs of one prompt, unpadded, on the CPU, in the checkpoint's own chat format where it has one.

    Pictures of any mode and size go in as `foveate.data.limits.fit_picture` makes them.

    Raises:
        ModelError: when a clip is shown to a model of images, or the processor fails.
        PictureError: when a picture cannot be shown, or the processor cannot take it.
        QuestionError: when the question holds a model's placeholder.
    """
    for text in prompt.texts:
        check_question(processor, text)
    pictures = [fit_picture(processor, picture) for picture in prompt.pictures]
    try:
        return _process(processor, prompt._replace(pictures=pictures))
    except FoveateError:
        raise
    except Exception as error:  # processors raise nearly everything
        raise explain_failure(processor, pictures, error) from error


def _process(processor: Any, prompt: Prompt) -> dict[str, Any]:
    messages = prompt.conversation()
    if getattr(processor, "chat_template", None):
        # Unless told, processors take frames for those of a film of 24 a second: they leave some out, and place the
        # rest so near to each other that a model cannot tell one from the next.
        told = {"do_sample_frames": False, "video_metadata": [describe_clip(len(prompt.pictures))]}
        clip = {"processor_kwargs": {"videos_kwargs": told}} if prompt.video else {}
        return dict(
            processor.apply_chat_template(
                messages,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                **clip,
            )
        )
    if prompt.video:
        raise ModelError("this model's processor takes images, not clips; ask a Qwen-VL model about clips.")
    text = write_plainly(processor, messages)
    return dict(processor(images=list(prompt.pictures) or None, text=[text], return_tensors="pt"))


def describe_clip(frames: int) -> dict[str, Any]:
    """The times of a clip's frames, as transformers' and vLLM's processors are told them."""
    known = {"total_num_frames": frames, "fps": FRAMES_A_SECOND, "duration": frames / FRAMES_A_SECOND}
    return known | {"frames_indices": list(range(frames))}


def write_plainly(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text for a checkpoint without a chat format: placeholders on lines of their own, and texts."""
    parts = [part for message in messages for part in message["content"]]
    return "".join(f"{processor.image_token}\n" if part["type"] == "image" else part["text"] for part in parts)


def decode(processor: Any, ids: Tensor) -> list[str]:
    """The texts of generated ids (B, A)."""
    return [str(text).strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def collate(prompts: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """One batch of single prompts: what is as long as their ids is padded on the left, the rest joined in order.

    Args:
        prompts: inputs with ``input_ids`` (1, L) each.
        padding: the token id to pad with.

    Raises:
        ModelError: when pictures of different shape cannot lie in one tensor.
    """
    length = max(one["input_ids"].shape[1] for one in prompts)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in prompts for name in one):
        values = [(one[name], one["input_ids"].shape) for one in prompts if name in one]
        if not isinstance(values[0][0], Tensor):
            batch[name] = [item for value, _ in values for item in value]
        elif all(value.shape == shape for value, shape in values):
            filler = padding if name == "input_ids" else 0
            batch[name] = torch.cat([pad_left(value, length, filler) for value, _ in values])
        else:
            try:
                batch[name] = torch.cat([value for value, _ in values])
            except RuntimeError:
                shapes = ", ".join(sorted({str(tuple(value.shape)) for value, _ in values}))
                raise ModelError(f"{name} of shapes {shapes} do not go into one batch; use a batch of 1.") from None
    return batch


def pad_left(values: Tensor, length: int, filler: int) -> Tensor:
    """(B, L) values widened to `length` on the left."""
    return nn.functional.pad(values, (length - values.shape[1], 0), value=filler)


def _image(picture: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def _clip(frames: Sequence[Image.Image]) -> dict[str, Any]:
    return {"type": "video", "video": list(frames)}


def move_to_model(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`inputs` on the model's device, its pixels in the model's dtype."""
    device, dtype = model.device, model.dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
