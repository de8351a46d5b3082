"""Ask a model about pictures, and read its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from .prompts import Prompt, decode, encode


def answers(model: Any, processor: Any, prompts: Sequence[Prompt], max_new_tokens: int = 32) -> list[str]:
    """The greedy answers to a batch of prompts, pruned where the model is.

    Args:
        model: a transformers model.
        processor: its processor.
        prompts: at least one.
        max_new_tokens: of an answer, at most.

    Raises:
        FoveateError: as `encode` does, for prompts that the model cannot be asked.
    """
    return generate_texts(model, processor, encode(model, processor, prompts), max_new_tokens)


def answer(
    model: Any, processor: Any, images: Image.Image | Sequence[Image.Image], question: str, max_new_tokens: int = 32
) -> str:
    """The greedy answer to one question about one or several pictures of any size.

    ```python
    import foveate
    from foveate.data import answer
    from foveate.testbed import load_shipped, scenes

    model, processor = load_shipped()
    with foveate.prune(model, "idpruner", keep=0.25):
        print(answer(model, processor, scenes()[0].image, "How many stars are there?"))
    ```

    Raises:
        FoveateError: as `encode` does, for a prompt that the model cannot be asked.
    """
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    return answers(model, processor, [Prompt(pictures, question)], max_new_tokens)[0]


def generate_texts(model: Any, processor: Any, inputs: Mapping[str, Tensor], max_new_tokens: int) -> list[str]:
    """The greedy answers to inputs of `encode`, one for each prompt."""
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return decode(processor, output[:, inputs["input_ids"].shape[1] :])
