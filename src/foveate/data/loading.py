"""Load a model with its processor, and ask it something: of your own, of the hub, or of the testbed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ModelError, first_line, near_miss
from .shipped import load_shipped, shipped_models

if TYPE_CHECKING:
    from torch import Tensor

_PATIENCE = 10.0  # seconds for the hub to answer
TESTBED = "testbed"  # on the command line: generated scenes, in the place of pictures or questions of your own
MODEL_HELP = "A model directory, a hub id, 'testbed-llava', 'testbed-llava-seed1' or 'testbed-qwen2.5-vl'."


DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Args:
        device: such as ``"cpu"`` or ``"cuda:1"``; None: the GPU where there is one.
        dtype: of the weights, one of `DTYPES`; None: the checkpoint's, and float32 for the models of the testbed.
        device_map: spreads the weights over devices, such as ``"auto"``, as accelerate does; in the place of `device`.
        max_pixels: larger pictures are scaled down to so many, for processors that keep a picture's own size.
        attn_implementation: of attention, as transformers calls it, such as ``"flash_attention_2"``; None: its choice.
        revision: of a model of the hub, a branch, tag or commit; None: the newest.

    Raises:
        ModelError: for options that no model can be loaded with.
    """

    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    max_pixels: int | None = None
    attn_implementation: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise ModelError(f"device {self.device} and device map {self.device_map} exclude each other; give one.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ModelError(f"unknown dtype {self.dtype!r}{near_miss(self.dtype, DTYPES)}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ModelError(f"max_pixels={self.max_pixels} must be at least 1, such as 1000000.")


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor."""

    model: Any
    processor: Any

    @property
    def label(self) -> str:
        """What the model is called where it is passed on: not by the folder that it lies in here."""
        from ..models import adapter_of
        from ..runtime.planner import facts_of

        return facts_of(adapter_of(self.model)).label

    @property
    def revision(self) -> str:
        """The commit of the hub that the model was loaded from; empty for one that was not."""
        from ..models import adapter_of
        from ..runtime.planner import facts_of

        return facts_of(adapter_of(self.model)).revision

    def inputs(self, images: Sequence[Image.Image], question: str, video: bool = False) -> dict[str, Tensor]:
        """Model inputs of one prompt, on the model's device and in its dtype; `images` may be a clip's frames.

        Raises:
            ModelError: for a clip, where the model sees pictures only.
        """
        from ..models import adapter_of
        from .prompts import Prompt, encode_one, move_to_model

        adapter = adapter_of(self.model)
        if video and "video" not in adapter.modalities:
            raise ModelError(
                f"{adapter.class_name} sees pictures, not clips; give frames as pictures, or another model, such as "
                "testbed-qwen2.5-vl."
            )
        return move_to_model(encode_one(self.processor, Prompt(images, question, video)), self.model)

    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> str:
        """The greedy answer."""
        from .generation import generate_texts

        return generate_texts(self.model, self.processor, inputs, max_new_tokens)[0]

    def visible_part(self, image: Image.Image) -> Image.Image:
        """The part of the picture that reaches the model: processors that crop to the centre lose the rest."""
        from .geometry import visible_part

        return visible_part(image, self.processor.image_processor)

    def crops(self, image: Image.Image) -> bool:
        """Whether the model sees the centre of the picture only."""
        images = self.processor.image_processor
        shown = self.visible_part(image).size
        return bool(getattr(images, "do_center_crop", False)) and (shown[0] < image.width or shown[1] < image.height)


def load(name: str, options: LoadOptions | None = None) -> LoadedModel:
    """The model in a directory, on the Hugging Face hub, or one of the testbed, in eval mode, on the GPU where one is.

    Args:
        name: a directory, an id of the hub, or the name of a model that comes with foveate.
        options: where it goes, and how.

    Raises:
        ModelError: when it cannot be loaded so, or foveate has no adapter for it.
    """
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from .limits import limit_pixels

    options = options or LoadOptions()
    require_model(name)
    device = _find_device(options.device)
    logging.set_verbosity_error()
    shipped = shipped_models()
    local = name in shipped or Path(name).exists()
    if local:  # what comes from the hub shows transformers' own bars of the download
        logging.disable_progress_bar()
    with Console(stderr=True).status(f"Loading {name}") if local else nullcontext():
        try:
            cached = not local and _unreachable(name)
            model, processor = load_shipped(name) if name in shipped else _load(name, options, cached)
            if name in shipped and options.attn_implementation is not None:
                model.set_attn_implementation(options.attn_implementation)
            if name in shipped and options.dtype not in (None, "auto"):
                model = model.to(getattr(torch, options.dtype))
            # What a device map has spread stays there; those of the testbed are too small to be spread.
            model = model if options.device_map and name not in shipped else model.to(device)
        except ModelError:
            raise
        except Exception as error:  # transformers raises nearly everything
            raise ModelError(
                f"cannot load the model {name!r} ({first_line(error)}); give a directory with a safetensors "
                f"checkpoint and its processor, a hub id, or one of {', '.join(shipped)}."
            ) from None
    if options.max_pixels is not None:
        limit_pixels(processor, options.max_pixels)
    return LoadedModel(model, processor)


def require_model(name: str) -> None:
    """Refuse at once what is no model's directory and no id of the hub, which would be asked for it again and again.

    Raises:
        ModelError: for a name that no model can have.
    """
    known: Iterable[str] = shipped_models()
    if name in known:
        return
    if not name.strip():
        raise ModelError(f"the name of the model is empty; give a directory, a hub id, or one of {', '.join(known)}.")
    if Path(name).is_file():
        raise ModelError(f"{name} is a file; give the directory of a checkpoint, with its config.json and processor.")
    if Path(name).is_dir():
        if not any((Path(name) / one).is_file() for one in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name} holds no config.json; give the directory of a checkpoint, with its processor.")
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model directory {name}; check the path.")
    if "/" not in name:
        hint = near_miss(name, known)
        raise ModelError(f"there is no model or directory {name!r}{hint} Ids of the hub read 'owner/name'.")


def _find_device(name: str | None) -> str:
    """The device called so, if this machine has it; None: the GPU where there is one."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {name!r} cannot be used here ({first_line(error)}); give cpu, or cuda for a GPU."
        ) from None
    return str(device)


def _unreachable(name: str) -> bool:
    """Whether the hub does not answer, so that its cache has to do; loading would try six times, for half a minute.

    Raises:
        ModelError: when the cache does not hold the model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from ..importance.checkpoints import checkpoint_folder

    if constants.HF_HUB_OFFLINE:
        return False  # loading knows
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except (HfHubHTTPError, HFValidationError):  # it answered; what is wrong with the model, loading says better
        return False
    except Exception as error:  # which, depends on what the hub's library connects with
        if checkpoint_folder(name) is None:
            raise ModelError(
                f"cannot load the model {name!r}: the hub cannot be reached ({first_line(error)}) and its cache on "
                "this machine does not hold it; give a directory with a checkpoint, or try again with a network."
            ) from None
        return True
    return False


def _load(name: str, options: LoadOptions, cached: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..models import adapter_of, supported_models
    from .fallback_processor import load_processor

    revision = options.revision or "main"
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=cached, revision=revision)
    supported = sorted({row.model_type for row in supported_models()})
    if config.model_type not in supported:
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise ModelError(
                f"models of type {config.model_type!r} are not supported; supported: {', '.join(supported)}, and other "
                "image-text classes of transformers."
            )
        with torch.device("meta"):  # raises before the weights are read, which may be large
            adapter_of(AutoModelForImageTextToText.from_config(config))
    if options.device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise ModelError("a device map needs accelerate; install it: pip install accelerate.")
    model = AutoModelForImageTextToText.from_pretrained(
        name,
        dtype=options.dtype or "auto",
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        revision=revision,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=cached,
    )
    return model.eval(), load_processor(name, model, cached, revision)
