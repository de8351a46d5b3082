"""What a task shows, as a prompt: chat messages, or a text behind pictures; images and clips, in files or in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.clips import spread
from ...data.images import IMAGE_SUFFIXES, open_image
from ...data.prompts import Prompt
from ...errors import FoveateError

_PLACE = "<image>"  # which tasks write for LLaVA's first prompts, and lmms-eval's models leave out


class MediaError(FoveateError, ValueError):
    """A task shows something that cannot be shown to the model."""


@dataclass(frozen=True)
class MediaReader:
    """Makes prompts of what tasks give.

    Args:
        max_num_frames: of a clip, at most; they are spread evenly over it.
        fps: frames of each second of a clip; None spreads `max_num_frames`.
        system_prompt: of every conversation; empty leaves it to the chat template.
    """

    max_num_frames: int = 32
    fps: float | None = None
    system_prompt: str = ""

    def read_messages(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """A prompt of chat messages in lmms-eval's protocol, whose images and clips are under ``url``.

        Raises:
            MediaError: for sound, several clips, and clips beside images.
            PictureError: for pictures that cannot be opened.
        """
        pictures: list[Image.Image] = []
        clips: list[list[Image.Image]] = []
        found = []
        if self.system_prompt and (not messages or messages[0]["role"] != "system"):
            found.append({"role": "system", "content": [_text(self.system_prompt)]})
        for message in messages:
            content = message["content"]
            parts = [_text(content)] if isinstance(content, str) else content
            shown: list[dict[str, Any]] = []
            for part in parts:
                kind = part["type"]
                if kind == "text":
                    shown.append(_text(part["text"].replace(_PLACE, "")))
                    continue
                if kind == "image":
                    pictures.append(_picture(part["url"]))
                elif kind == "video":
                    clips.append(self._clip(part))
                else:
                    raise MediaError(f"the task has {kind}, but images and clips can be shown; choose another task.")
                shown.append({"type": kind})
            found.append({"role": message["role"], "content": shown})
        if len(clips) > 1 or (clips and pictures):
            raise MediaError(
                f"the task shows {len(clips)} clips and {len(pictures)} images at once, but a conversation can show "
                "images, or one clip; choose another task."
            )
        return Prompt(clips[0] if clips else pictures, "", bool(clips), found)

    def read_visuals(self, visuals: Sequence[Any] | None, text: str) -> Prompt:
        """A prompt of pictures and a text behind them, as tasks give them to simple models; errors as above."""
        shown = [_visual(visual) for visual in visuals or ()]
        return self.read_messages([{"role": "user", "content": [*shown, _text(text)]}])

    def _clip(self, part: Mapping[str, Any]) -> list[Image.Image]:
        """The frames of a clip: a file, a list of pictures or files, or an array (T, H, W, 3)."""
        given = part["url"]
        if isinstance(given, Mapping):
            given = given.get("url") or given.get("path") or given.get("video")
        if isinstance(given, (str, Path)):
            if part.get("start_time") is not None or part.get("end_time") is not None:
                raise MediaError(f"the task shows a part of {given}, but whole clips can be shown; cut it beforehand.")
            return [Image.fromarray(frame) for frame in self._decode(Path(given))]
        frames = [_picture(one) for one in given]
        if not frames:
            raise MediaError("the task shows a clip without frames; choose another task.")
        return spread(frames, self.max_num_frames)

    def _decode(self, path: Path) -> Any:
        if not path.is_file():
            raise MediaError(f"there is no clip at {path}; let lmms-eval download the task's clips first.")
        try:
            from lmms_eval.models.model_utils.load_video import read_video
        except ImportError as error:
            raise MediaError(f"the clip {path.name} cannot be read ({error}); pip install av.") from None
        return read_video(str(path), num_frm=self.max_num_frames, fps=self.fps, force_include_last_frame=True)


def hide_pictures(prompt: Prompt) -> Prompt:
    """The same prompt without its pictures."""
    texts = [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        for message in prompt.messages
    ]
    return Prompt((), prompt.question, False, texts)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _visual(visual: Any) -> dict[str, Any]:
    """A content part of what ``doc_to_visual`` gives: a picture, a file, or a mapping that says what it is."""
    if isinstance(visual, Mapping):
        if "array" in visual and "sampling_rate" in visual:
            return {"type": "audio", "url": visual}
        given = visual.get("url") or visual.get("path") or visual.get("video")
        times = {
            new: visual[old] for old, new in (("video_start", "start_time"), ("video_end", "end_time")) if old in visual
        }
        return {"type": visual.get("type", "video"), "url": given, **times}
    if isinstance(visual, (str, Path)):
        return {"type": "image" if Path(visual).suffix.lower() in IMAGE_SUFFIXES else "video", "url": visual}
    return {"type": "video" if isinstance(visual, (list, tuple)) else "image", "url": visual}


def _picture(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, (str, Path)):
        return open_image(Path(given))
    return Image.fromarray(given)
