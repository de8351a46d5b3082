"""A loaded model with its processor: how commands ask it something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ..errors import ModelError, near_miss
from .images import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED, TESTBED = "bundled", "testbed"
_PATIENCE = 10.0  # seconds for the hub to answer
MODEL_HELP = "A model directory, a hub id, 'bundled', 'testbed-llava', 'testbed-llava-seed1' or 'testbed-qwen2.5-vl'."


@dataclass(frozen=True)
class Session:
    """A model, its processor, and whether they are the bundled pair."""

    model: Any
    processor: Any
    bundled: bool

    @classmethod
    def load(cls, name: str) -> Session:
        """The model in a directory, on the Hugging Face hub, ``bundled``, or one of the testbed that comes along.

        Raises:
            ModelError: when it cannot be loaded or foveate has no adapter for it.
        """
        import torch
        from rich.console import Console
        from transformers.utils import logging

        from ..testbed import bundled_path, load_bundled, shipped_models

        logging.set_verbosity_error()
        shipped = shipped_models()
        known = (BUNDLED, *shipped)
        if name not in known:
            _check(name, known)
        local = name in known or Path(name).exists()
        if local:  # what comes from the hub shows transformers' own bars of the download
            logging.disable_progress_bar()
        with Console(stderr=True).status(f"Loading {name}") if local else nullcontext():
            if name == BUNDLED or Path(name).resolve() == bundled_path():
                return cls(*load_bundled(), bundled=True)
            try:
                if name in shipped:  # small enough for float32, which CPUs compute faster
                    return cls(*_load(str(shipped[name]), torch.float32), bundled=False)
                return cls(*_load(name, cached=not local and _unreachable(name)), bundled=False)
            except ModelError:
                raise
            except Exception as error:  # transformers raises nearly everything
                raise ModelError(
                    f"cannot load the model {name!r} ({_reason(error)}); give a directory with a safetensors "
                    f"checkpoint and its processor, a hub id, or one of {', '.join(known)}."
                ) from None

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

    def inputs(self, images: Sequence[Image.Image], question: str) -> dict[str, Tensor]:
        """Model inputs of one prompt, on the model's device and in its dtype."""
        from .prompts import Prompt, encode_one, placed

        return placed(encode_one(self.processor, Prompt(images, question)), self.model)

    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> str:
        """The greedy answer."""
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return str(self.processor.batch_decode(new, skip_special_tokens=True)[0]).strip()

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of the picture that reaches the model: processors that crop to the centre lose the rest."""
        if self.bundled:
            side = min(image.size)  # as `testbed.fitted` crops it, but in the picture's own resolution
            return ImageOps.fit(to_rgb(image), (side, side))
        from .geometry import seen

        return seen(image, self.processor.image_processor)

    def crops(self, image: Image.Image) -> bool:
        """Whether the model sees the centre of the picture only."""
        if self.bundled:
            return image.width != image.height
        images = self.processor.image_processor
        shown = self.seen(image).size
        return bool(getattr(images, "do_center_crop", False)) and (shown[0] < image.width or shown[1] < image.height)


def _check(name: str, known: Iterable[str]) -> None:
    """Refuse at once what is no directory and no id of the hub, which would be asked for it again and again."""
    if Path(name).exists():
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model directory {name}; check the path.")
    if "/" not in name:
        hint = near_miss(name, known)
        raise ModelError(f"there is no model or directory {name!r}{hint} Ids of the hub read 'owner/name'.")


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
                f"cannot load the model {name!r}: the hub cannot be reached ({_reason(error)}) and its cache on this "
                "machine does not hold it; give a directory with a checkpoint, or try again with a network."
            ) from None
        return True
    return False


def _load(name: str, dtype: Any = "auto", cached: bool = False) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..models import supported_models

    model_type = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=cached).model_type
    supported = sorted({row.model_type for row in supported_models()})
    if model_type not in supported:
        raise ModelError(f"models of type {model_type!r} are not supported; supported: {', '.join(supported)}.")
    model = AutoModelForImageTextToText.from_pretrained(
        name, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=cached
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), _processor(name, model, cached)


def _processor(name: str, model: Any, cached: bool) -> Any:
    """The checkpoint's processor; without torchvision, which those of video models need, one for still images."""
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import is_torchvision_available

    from ..models import adapter_of
    from .fallback_processor import StillProcessor

    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False, local_files_only=cached)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
    except AttributeError:  # transformers 5.16 asks for the module of InternVL's video processor, which is None
        if is_torchvision_available():
            raise
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=cached)
    images = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, local_files_only=cached)
    return StillProcessor(tokenizer, images, adapter_of(model))


def _reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
