"""Questions about pictures as inputs of a model, whichever it is: one prompt with its own processor, then a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import FoveateError, ModelError
from .limits import check_question, explain_failure, fit_picture


class Prompt(NamedTuple):
    """What is asked about which pictures: images, the frames of a clip, or none at all."""

    pictures: Sequence[Image.Image]
    question: str
    video: bool = False


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
    check_question(processor, prompt.question)
    pictures = [fit_picture(processor, picture) for picture in prompt.pictures]
    try:
        return _process(processor, Prompt(pictures, prompt.question, prompt.video))
    except FoveateError:
        raise
    except Exception as error:  # processors raise nearly everything
        raise explain_failure(processor, pictures, error) from error


def _process(processor: Any, prompt: Prompt) -> dict[str, Any]:
    pictures, question, video = prompt
    if getattr(processor, "chat_template", None):
        shown = [{"type": "video", "video": list(pictures)}] if video else [_image(one) for one in pictures]
        return dict(
            processor.apply_chat_template(
                [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
    if video:
        raise ModelError("this model's processor takes images, not clips; ask a Qwen-VL model about clips.")
    text = f"{processor.image_token}\n" * len(pictures) + question
    return dict(processor(images=list(pictures) or None, text=[text], return_tensors="pt"))


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


def move_to_model(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`inputs` on the model's device, its pixels in the model's dtype."""
    device, dtype = model.device, model.dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
