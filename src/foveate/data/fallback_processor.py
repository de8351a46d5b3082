"""Prompts with images and clips made from an image processor and a tokenizer alone.

transformers' own processors of video models need torchvision even where no video is asked about.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..models import ModelAdapter, adapter_of
from .prompts import FRAMES_A_SECOND

_KINDS = {"image": 1, "video": 2}  # as Qwen-VL reads its 3-D positions off ``mm_token_type_ids``


def load_processor(name: str, model: Any, cached: bool = False, revision: str = "main") -> Any:
    """The checkpoint's processor; without torchvision, which those of video models need, a `FallbackProcessor`.

    Args:
        name: a folder or an id of the hub.
        model: loaded from there.
        cached: look for files of the hub on this machine only.
        revision: of the hub's files.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import is_torchvision_available

    where: Any = {"trust_remote_code": False, "local_files_only": cached, "revision": revision}
    try:
        return AutoProcessor.from_pretrained(name, **where)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
    except AttributeError:  # transformers 5.16 asks for the module of InternVL's video processor, which is None
        if is_torchvision_available():
            raise
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    images = AutoImageProcessor.from_pretrained(name, **where)
    return FallbackProcessor(tokenizer, images, adapter_of(model))


class FallbackProcessor:
    """Stands in for a model's processor, for single chat prompts with images or clips of frames.

    Args:
        tokenizer: its chat template writes one placeholder for each image or clip.
        image_processor: of the same checkpoint.
        adapter: knows the placeholders and how many tokens each image takes.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, adapter: ModelAdapter) -> None:
        self.tokenizer, self.image_processor, self._adapter = tokenizer, image_processor, adapter
        self.chat_template = tokenizer.chat_template
        ids = {kind: adapter.token_ids()[kind] for kind in adapter.modalities}
        if ids.get("video") == ids["image"]:  # of clips that need their own processor
            del ids["video"]
        self._tokens = {kind: str(tokenizer.convert_ids_to_tokens(number)) for kind, number in ids.items()}
        self.image_token, self.video_token = self._tokens["image"], self._tokens.get("video")
        self._typed = "mm_token_type_ids" in inspect.signature(adapter.model.forward).parameters
        self.batch_decode = tokenizer.batch_decode

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> dict[str, Tensor]:
        """Model inputs of one conversation, as transformers' processors return them."""
        content = [part for message in messages for part in message["content"] if not isinstance(part, str)]
        images, clips = ([part[kind] for part in content if part["type"] == kind] for kind in _KINDS)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self(images=images, text=[text], videos=clips)

    def __call__(
        self, images: Sequence[Any] | None, text: Sequence[str], videos: Sequence[Sequence[Any]] = (), **_: Any
    ) -> dict[str, Tensor]:
        """Model inputs of one prompt (1, L) that holds a placeholder for each of its images and clips.

        Raises:
            ModelError: for clips of a family whose prompts name the time of each frame, and where a prompt does not
                hold as many placeholders as there are images and clips.
        """
        # Processors that cut images into tiles do so only when asked, as the families' own processors ask them.
        tiled = {"crop_to_patches": True} if hasattr(self.image_processor, "crop_to_patches") else {}
        # LLaVA-OneVision's cuts them only where a prompt has one.
        nested = "batch_num_images" in getattr(self.image_processor, "model_input_names", ())
        shown = [list(images or ())] if nested else list(images or ())
        media = dict(self.image_processor(images=shown, return_tensors="pt", **tiled)) if images else {}
        slices = media.get("num_patches_per_image")
        if slices is not None and int(torch.as_tensor(slices).max()) > 1:  # MiniCPM-V's
            raise ModelError(
                "a picture was cut into slices, which stand between tags that only the family's own processor writes; "
                "install torchvision, or load the image processor with slice_mode=False."
            )
        if videos:
            media |= self._clips(videos)
        tiles = [int(number) for number in media.pop("num_patches", ())]
        runs = self._adapter.placeholders(media) if media else {}
        filled = text[0]
        for kind, token in self._tokens.items():
            sizes = [len(run) for run in runs.get(kind, ())]
            if tiles and kind == "image":
                ends = list(itertools.accumulate(tiles))
                sizes = [sum(sizes[end - number : end]) for end, number in zip(ends, tiles, strict=True)]
            elif images and kind == "image":  # of one or of several grids, as many for each
                grids = max(len(sizes) // len(images), 1)
                sizes = [sum(sizes[start : start + grids]) for start in range(0, len(sizes), grids)]
            filled = self._repeat_placeholders(filled, token, sizes, framed=bool(tiles))
        encoded = dict(self.tokenizer([filled], return_tensors="pt", add_special_tokens=False))
        if not self._typed:
            return {**encoded, **media}
        ids = encoded["input_ids"]
        kinds = torch.zeros_like(ids)
        for kind in self._tokens:
            kinds[self._adapter.find_placeholders(kind, ids, media)] = _KINDS[kind]
        return {**encoded, **media, "mm_token_type_ids": kinds}

    def _repeat_placeholders(self, text: str, token: str, sizes: Sequence[int], framed: bool) -> str:
        """`text` with each placeholder repeated as often as its image or clip has tokens."""
        head, *rest = text.split(token)
        if len(rest) != len(sizes):
            raise ModelError(
                f"the prompt holds {len(rest)} times {token!r}, which stands for a picture, but there are {len(sizes)} "
                "to show; leave it out of the question."
            )
        opening, closing = (getattr(self.tokenizer, f"{side}_image_token", "") for side in ("start", "end"))
        if not framed:  # the chat template wrote the frame
            opening = closing = ""
        shown = (f"{opening}{token * size}{closing}{part}" for size, part in zip(sizes, rest, strict=True))
        return head + "".join(shown)

    def _clips(self, clips: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """Patches of clips, whose frames share them in groups; of a still, every frame of a group is the same."""
        if self._adapter.model_type not in ("qwen2_vl", "qwen2_5_vl"):
            raise ModelError(
                f"clips for models of type {self._adapter.model_type!r} need their own processor; install torchvision."
            )
        shared = self.image_processor.temporal_patch_size
        patches, shapes = [], []
        for clip in clips:
            frames = [*clip, *[clip[-1]] * (-len(clip) % shared)]
            made = self.image_processor(images=frames, return_tensors="pt")
            _, rows, columns = made["image_grid_thw"][0].tolist()
            # (groups, frames of a group, patches, channels, frames of a patch, pixels): of frame i only slice i
            area = self.image_processor.patch_size**2
            pixels = made["pixel_values"].view(-1, shared, rows * columns, 3, shared, area)
            own = torch.stack([pixels[:, i, :, :, i] for i in range(shared)], dim=3)
            patches.append(own.flatten(2).flatten(0, 1))
            shapes.append([len(frames) // shared, rows, columns])
        media = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(shapes)}
        if self._adapter.model_type == "qwen2_5_vl":
            # transformers' own ones are as many as the longest prompt has tokens: too few for many short prompts
            media["second_per_grid_ts"] = torch.full((len(shapes),), shared / FRAMES_A_SECOND)
        return media
