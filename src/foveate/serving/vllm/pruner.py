"""Between vLLM's encoder and its encoder cache: the images of a step are encoded together, then each is shortened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...devices import from_host
from ...methods import Method
from ...methods.toolkit.in_encoder import InEncoder
from ...tokens import Cue, Source
from .batch import MethodCall, Question, Shortened, first_tokens
from .config import ServingConfig
from .encoder_cues import EncoderCues
from .family import PIXELS, field, key_field, pick, take
from .faults import Faults
from .feature_cache import Encoded, FeatureCache
from .inside_encoder import InsideEncoder
from .layout import Weaver
from .memory import ChoiceMemory
from .positions import distances_in_block
from .request import PruneRequest


class ImagePruner:
    """Wraps ``embed_multimodal`` of one model.

    Args:
        server: of the model.
        width: columns of an embedding that the language model reads; DeepStack rows stand behind them.
        most: unpruned tokens that may be encoded at once. vLLM admits images to a step by what is kept of them, but
            the encoder's memory was measured for this many.
        embed_text: the language model's input embeddings (M, d) of ids (M,).
    """

    def __init__(self, config: ServingConfig, width: int, most: int, embed_text: Callable[[Tensor], Tensor]) -> None:
        self._config, self.family, self._width, self._most = config, config.known_family, width, most
        self._encoder, self._embed_text = EncoderCues(self.family), embed_text
        self.features = FeatureCache(int(config.settings.feature_cache_gb * 2**30))
        self.encoded = 0  # images and clips that went through the encoder, of batches in which any is pruned
        self.faults, self.memory = Faults(), ChoiceMemory()
        self._inside = self._prepare_inside() if config.inside else None

    def _prepare_inside(self) -> InsideEncoder:
        stages = self._config.inside
        cues = [EncoderCues(self.family, below=stage.block) for stage in stages]
        return InsideEncoder(self.family, stages, cues, self.memory, self.faults)

    def embed(
        self, encode: Callable[..., Sequence[Tensor]], batch: dict[str, Any]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Encode and shorten.

        Args:
            encode: ``embed_multimodal`` of vLLM's class.
            batch: its arguments, and the requests of the images.

        Returns:
            for each image its embeddings (k, d'), and the distances (k, 3) of the kept tokens from the beginning of
            their block in M-RoPE positions; None where everything is kept.
        """
        batch = dict(batch)
        marks = {modality: batch.pop(field(modality)) for modality in PIXELS if field(modality) in batch}
        names = {modality: batch.pop(key_field(modality)) for modality in PIXELS if key_field(modality) in batch}
        present = [modality for modality, name in PIXELS.items() if name in batch]
        if not marks or len(present) != 1:
            return [(rows, None) for rows in encode(**batch)]
        modality = present[0]
        batch = self.family.prepare(modality, batch)
        keys = _keys(marks[modality], names.get(modality))
        requests = [PruneRequest.from_tensor(mark) for mark in marks[modality]]
        items = self.family.items(modality, batch)
        rows = self.family.rows(modality, batch)
        seconds = self.family.seconds(modality, batch, len(items))
        out: list[tuple[Tensor, Tensor | None]] = []
        for first, last in _portions([sum(map(len, grids)) for grids in items], self._most):
            portion = batch if last - first == len(items) else take(batch, rows, first, last)
            inside = slice(first, last)
            out += self._portion(
                encode, modality, portion, requests[inside], items[inside], seconds[inside], keys[inside]
            )
        return out

    def _portion(
        self, encode: Any, modality: str, batch: Any, requests: Any, items: Any, seconds: Any, keys: Any
    ) -> Any:
        """`embed` for images that are encoded together."""
        asked = {index: request for index, request in enumerate(requests) if request is not None}
        methods = {index: self._method(request) for index, request in asked.items()}
        needs = {index: _needs(method) for index, method in methods.items()}
        # By shape, too: clients may name images themselves, and two of unlike size alike.
        images = {
            index: f"{request.place.image} {request.encoder} {items[index]}"
            for index, request in asked.items()
            if request.place is not None
        }
        inside = {index: request for index, request in asked.items() if request.encoder}
        encoded = self._encode(encode, modality, batch, items, needs, images, inside, keys)
        out: list[tuple[Tensor, Tensor | None]] = [(one.rows, None) for one in encoded]
        weavers = {index: self._weaver(modality, items[index], encoded[index].rows) for index in asked}
        calls: dict[Any, list[int]] = {}  # one for each method and text that it chooses by
        for index, request in asked.items():
            text = () if request.place is None else request.place.text
            calls.setdefault((methods[index], text, index in inside), []).append(index)
        for (method, text, _), mine in calls.items():
            rows = [weavers[index].tokens(encoded[index].rows) for index in mine]
            groups = [asked[index].groups(items[index]) for index in mine]
            alive = _alive(encoded[index] for index in mine)
            if method is None or isinstance(method, InEncoder):  # nobody chooses again behind the encoder
                images_left = [None] * len(mine) if alive is None else alive
                shortened = list(map(first_tokens, rows, groups, images_left))
            else:
                held = [encoded[index].cues for index in mine]
                read = {cue: [one[cue] for one in held] for cue in _needs(method) if all(cue in one for one in held)}
                question = None
                if Cue.TEXT_EMBEDDINGS in method.needs:
                    question = self._question(text, [asked[index] for index in mine], rows[0])
                call = MethodCall(method, rows, groups, read, self._width, question, alive)
                shortened = self.memory.shorten([keys[index] for index in mine], call, self.faults)
            for index, one in zip(mine, shortened, strict=True):
                woven = weavers[index].weave(encoded[index].rows, one.rows, one.index, self._text(weavers[index]))
                out[index] = woven, self._distances(one, items[index], seconds[index])
        return out

    def _weaver(self, modality: str, grids: Any, rows: Tensor) -> Weaver:
        return Weaver(torch.cat(self.family.layouts(modality, grids)), rows.device)

    def _text(self, weaver: Weaver) -> Tensor | None:
        return self._embed_text(weaver.text) if len(weaver.text) else None

    def _method(self, request: PruneRequest) -> Method | None:
        """The method of a request; None where it cannot be made ready in this process, as it was in the processor's."""
        try:
            return self._config.methods.get(request.method)
        except Exception as error:
            self.faults.count_failed(f"making {request.method} ready", 1, error)
            return None

    def _read(self, items: Any) -> dict[Cue, list[Tensor]]:
        """The cues of a portion; none where they cannot be read, for which the methods that need them raise."""
        try:
            return self._encoder.read(items)
        except Exception as error:
            self.faults.count_failed("reading the vision encoder", 0, error)
            return {}

    def _question(self, text: Sequence[int], requests: Sequence[PruneRequest], like: Tensor) -> Question | None:
        """The text that these images are chosen by; None where it cannot be embedded, for which methods raise."""
        try:
            embeddings = self._embed_text(from_host(text, like.device))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            self.faults.count_failed("embedding the question", 0, error)
            return None
        return Question(embeddings, [() if one.place is None else one.place.before for one in requests])

    def _encode(
        self,
        encode: Any,
        modality: str,
        batch: Any,
        items: Any,
        needs: dict[int, frozenset[Cue]],
        images: dict[int, str],
        inside: dict[int, PruneRequest],
        keys: Sequence[bytes | None],
    ) -> list[Encoded]:
        """Images behind the encoder: each goes through it once, unless its features are still here.

        Args:
            needs: the encoder's cues that each image's method needs.
            images: the names of those that may be asked for again.
            inside: the requests of those that lose tokens inside the encoder. Others go through it without them, so
                that nothing of these can be seen in what it makes of them.
            keys: what stands for each image and its request.
        """
        wanted: dict[str, frozenset[Cue]] = {}  # by all that this batch makes of an image
        for index, image in images.items():
            wanted[image] = wanted.get(image, frozenset()) | needs[index]
        found: dict[str, Encoded] = {}
        device = _device(batch[PIXELS[modality]])
        for image, cues in wanted.items():
            if (held := self.features.get(image, cues, device)) is not None:
                found[image] = held
        last = {image: index for index, image in images.items() if image not in found}
        todo = [index for index in range(len(items)) if index not in images or last.get(images[index]) == index]
        made: dict[int, Encoded] = {}
        for indices in ([i for i in todo if i not in inside], [i for i in todo if i in inside]):
            if not indices:
                continue
            together = [items[index] for index in indices]
            part = batch if len(indices) == len(items) else pick(batch, self.family.rows(modality, batch), indices)
            read = frozenset[Cue]().union(*(needs.get(index, frozenset()) for index in indices))
            with contextlib.ExitStack() as stack:
                passing = None
                if self._inside is not None and indices[0] in inside:
                    grids, requests = [grid for (grid,) in together], [inside[index] for index in indices]
                    own = [keys[index] for index in indices]
                    passing = stack.enter_context(self._inside.pruning(grids, requests, own))
                stack.enter_context(self._encoder.observing(read, together, passing))
                rows = list(encode(**part))
                cues_read = self._read(together)
            self.encoded += len(indices)
            for place, index in enumerate(indices):
                own_cues = {cue: values[place] for cue, values in cues_read.items()}
                alive = None if passing is None else passing.alive_of(place, rows[place].device)
                made[index] = Encoded(rows[place], own_cues, alive)
        for image, index in last.items():
            found[image] = made[index]
            self.features.put(image, made[index])
        return [made[index] if index in made else found[images[index]] for index in range(len(items))]

    def _distances(self, kept: Shortened, grids: Any, step: float) -> Tensor | None:
        if not self.family.mrope:
            return None
        (grid,) = grids
        # Where each frame is a block of its own, its tokens begin at its own beginning.
        return distances_in_block(kept.index, grid, 0.0 if self.family.clip_scopes == ("frame",) else step)


def _portions(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs of images with at most so many tokens together, or one image."""
    bounds, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            bounds.append((start, index))
            start, total = index, 0
        total += size
    return [*bounds, (start, len(sizes))]


def _keys(marks: Sequence[Tensor], names: Sequence[Tensor] | None) -> list[bytes | None]:
    """What stands for each image and its request; None where the image's name did not travel with it."""
    if names is None:
        return [None] * len(marks)
    pairs = zip(marks, names, strict=True)
    return [bytes(name.tolist()) + bytes(mark.tolist()) if bool(name.any()) else None for mark, name in pairs]


def _device(pixels: Tensor | Sequence[Tensor]) -> torch.device:
    return pixels.device if isinstance(pixels, Tensor) else _device(pixels[0])


def _alive(images: Iterable[Encoded]) -> list[Tensor] | None:
    """Which tokens the encoder has not left out of images, all of which lose some inside of it, or none."""
    masks = [image.alive for image in images if image.alive is not None]
    return masks or None


def _needs(method: Method | None) -> frozenset[Cue]:
    """The cues of the encoder that a method needs."""
    if method is None or isinstance(method, InEncoder):  # which has chosen by then
        return frozenset()
    return frozenset(method.needs & Cue.of(Source.ENCODER))
