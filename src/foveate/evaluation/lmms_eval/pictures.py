"""What both engines do with the pictures of a prompt before it is encoded."""

from __future__ import annotations

from typing import Any

from ...data.prompts import Prompt
from ...errors import ConfigError


def hide_pictures(prompt: Prompt) -> Prompt:
    """The same prompt without its pictures."""
    texts = [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        for message in prompt.messages
    ]
    return Prompt((), prompt.question, False, texts)


def limit_pixels(processor: Any, least: int | None, most: int | None) -> None:
    """Let a processor size pictures to between `least` and `most` pixels; None leaves a limit as it is.

    Raises:
        ConfigError: for a processor that does not size pictures by their pixels, and for limits that cannot be.
    """
    if least is None and most is None:
        return
    for name in ("image_processor", "video_processor"):
        sized: Any = getattr(processor, name, None)
        if sized is None and name == "video_processor":
            continue
        size = dict(getattr(sized, "size", None) or {})
        if "image_grid_thw" not in getattr(sized, "model_input_names", ()) and name == "image_processor":
            raise ConfigError(
                f"{type(sized).__name__} does not size pictures by their pixels; leave out min_pixels and max_pixels."
            )
        size["shortest_edge"] = least if least is not None else size["shortest_edge"]
        size["longest_edge"] = most if most is not None else size["longest_edge"]
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ConfigError(
                f"min_pixels={size['shortest_edge']} and max_pixels={size['longest_edge']} leave no size for a "
                "picture; give fewer at least than at most."
            )
        sized.size = type(sized.size)(**size) if not isinstance(sized.size, dict) else size
