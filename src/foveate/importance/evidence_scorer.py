"""EvidenceScorer: which visual tokens show what a question asks about, beside what matters whatever is asked.

The score of a token is ``pull * importance + evidence``. The importance is that of a `LearnedScorer`, blind to the
question, from 0 to 1 over the image. The evidence comes from a few layers of attention, narrow beside the language
model's, over the words of the question and the visual tokens; where no question is given, a learned word takes its
place. What `evidence` (the method) keeps is chosen by ``score - diversity * similarity to what is kept``, and `pull`
and `diversity` are learned with the rest.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from ..devices import full_precision
from ..errors import MethodError
from ..files import expand, write_bytes
from .learned_scorer import LearnedScorer
from .scorer_files import KEYS

SHIPPED = "foveate-evidence.safetensors"  # the scorer that lies in a model's own folder
WORDS = 64  # of a prompt's text, counted from its end
_WAVES = 8  # half-waves of 1 to 128 tokens
_FORMAT = "foveate-evidence"


@dataclass(frozen=True)
class EvidenceShape:
    """Sizes of an evidence scorer.

    Args:
        hidden_size: d, the width of the language model's input.
        width: of the scorer's own layers.
        layers: of attention.
        heads: in each layer; they divide the width.
        base: width of the queries and keys of the importance that is blind to the question; 0 for none.
    """

    hidden_size: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    base: int = 0

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.width, self.layers, self.heads) < 1 or self.base < 0 or self.width % self.heads:
            raise MethodError(f"{self} is not the shape of an evidence scorer; heads must divide the width.")


class EvidenceScorer(nn.Module):
    """The scorer, in float32; its initial evidence is 0, so that it begins as its importance.

    Args:
        shape: its sizes.
        base: the importance that it begins with, whose widths are those of `shape`; None for none.
        seed: of the initial weights.
        source: where it came from, for messages.

    Raises:
        MethodError: when `base` does not fit.
    """

    def __init__(
        self, shape: EvidenceShape, base: LearnedScorer | None = None, seed: int = 0, source: str = "memory"
    ) -> None:
        super().__init__()
        if base is not None and (shape.base, shape.hidden_size) != tuple(base.q_weight.shape):
            raise MethodError(f"the scorer {base.source} does not fit {shape}.")
        self.shape, self.source = shape, source
        self._elsewhere: dict[torch.device, EvidenceScorer] = {}
        width = shape.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.see = nn.Sequential(nn.LayerNorm(shape.hidden_size), nn.Linear(shape.hidden_size, width))
            self.read = nn.Sequential(nn.LayerNorm(shape.hidden_size), nn.Linear(shape.hidden_size, width))
            self.place = nn.Linear(6 * _WAVES, width)
            self.order = nn.Parameter(torch.randn(WORDS, width) * 0.02)  # of words, the last one first
            self.seen = nn.Parameter(torch.randn(width) * 0.02)  # what tells visual tokens from words
            self.nothing = nn.Parameter(torch.randn(width) * 0.02)  # in the place of a question
            self.blocks = nn.ModuleList(_Block(width, shape.heads) for _ in range(shape.layers))
            self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.pull = nn.Parameter(torch.tensor(4.0))
        self.spread = nn.Parameter(torch.tensor(4.0))
        self.base = nn.ParameterList() if base is None else nn.ParameterList(_copies(base))
        if base is None and shape.base:
            self.base = nn.ParameterList(
                torch.zeros(size) for size in ((shape.base, shape.hidden_size), (shape.base,)) * 2
            )

    @property
    def diversity(self) -> Tensor:
        """Weight of the similarity beside the score; a scalar, at least 0."""
        return self.spread.clamp_min(0)

    @property
    def importance(self) -> LearnedScorer | None:
        """The importance that is blind to the question; it shares the parameters. None where there is none."""
        if not len(self.base):
            return None
        q_weight, q_bias, k_weight, k_bias = self.base
        return LearnedScorer(q_weight, q_bias, k_weight, k_bias, self.source)

    def on(self, device: torch.device) -> EvidenceScorer:
        """The scorer on a device: itself, or a copy that is made once; for scorers that no longer learn."""
        if device == self.order.device:
            return self
        if device not in self._elsewhere:
            copy = EvidenceScorer(self.shape, source=self.source)
            moved = {name: value.to(device, non_blocking=True) for name, value in self.state_dict().items()}
            copy.load_state_dict(moved, assign=True)
            self._elsewhere[device] = copy.requires_grad_(False).eval()
        return self._elsewhere[device]

    def check(self, hidden_size: int, model: str = "the model") -> None:
        """Raise MethodError unless the scorer reads features of width `hidden_size`, the width of `model`."""
        if hidden_size != self.shape.hidden_size:
            raise MethodError(
                f"the evidence scorer {self.source} reads features of width {self.shape.hidden_size}, but {model} has "
                f"width {hidden_size}; use one trained for this model."
            )

    def forward(
        self,
        features: Tensor,
        valid: Tensor,
        coordinates: Tensor,
        text: Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> Tensor:
        """Scores of visual tokens, (B, N) float32; 0 on padding.

        Args:
            features: (B, N, d), what enters the language model.
            valid: (B, N) bool, which of them are real.
            coordinates: (B, N, 3) long: frame, row and column of each.
            text: (B, M, d), the input embeddings of the prompt's text; its last `WORDS` are read. None: of no
                question, which is what a row without any text gets, too.
            text_valid: (B, M) bool; all are real when None.
        """
        evidence = self.evidence(features, valid, coordinates, text, text_valid)
        if (base := self.importance) is not None:
            evidence = evidence + self.pull * _stretch(base.scores(features, valid), valid)
        return evidence.masked_fill(~valid, 0.0)

    @full_precision
    def evidence(
        self,
        features: Tensor,
        valid: Tensor,
        coordinates: Tensor,
        text: Tensor | None = None,
        text_valid: Tensor | None = None,
    ) -> Tensor:
        """The part of the scores that the layers of attention give; arguments as `forward`."""
        visual = self.see(features.float()) + self.place(_waves(coordinates)) + self.seen
        words, there = self._words(features, text, text_valid)
        hidden, mask = torch.cat([words, visual], 1), torch.cat([there, valid], 1)[:, None, None]
        for block in self.blocks:
            hidden = block(hidden, mask)
        scores: Tensor = self.out(self.norm(hidden[:, words.shape[1] :])).squeeze(-1)
        return scores

    def _words(self, features: Tensor, text: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last words of the question, aligned on the right, (B, W, width), and which are there."""
        nothing = self.nothing.expand(len(features), 1, -1)
        always = torch.ones((len(features), 1), dtype=torch.bool, device=features.device)
        if text is None or not text.shape[1]:
            return nothing, always
        if valid is None:
            valid = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        last = valid.long().argsort(dim=1, stable=True)[:, -WORDS:]  # padding first, words behind it in their order
        there = valid.gather(1, last)
        words = self.read(text.float().gather(1, last[..., None].expand(-1, -1, text.shape[-1])))
        words = words + self.order[: last.shape[1]].flip(0)
        return torch.cat([nothing, words], 1), torch.cat([always & ~valid.any(1, keepdim=True), there], 1)

    def save(self, path: Path) -> None:
        """Write the weights and the shape to a ``.safetensors`` file."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        about = {_FORMAT: json.dumps(asdict(self.shape))}  # of two entries, the order would differ from run to run
        write_bytes(path, save(tensors, metadata=about))

    @classmethod
    def load(cls, path: str | Path) -> EvidenceScorer:
        """Read a scorer that `save` wrote, or the one in a model's folder, on the CPU, frozen.

        Raises:
            MethodError: when there is none, or the file is something else.
        """
        file = expand(path)
        if file.is_dir():
            file = file / SHIPPED if (file / SHIPPED).is_file() else file / "evidence.safetensors"
        if not file.is_file():
            raise MethodError(f"evidence scorer {path}: no such file; give one that `foveate train evidence` wrote.")
        try:
            with safe_open(str(file), framework="pt") as opened:
                about = (opened.metadata() or {}).get(_FORMAT)
                names = list(opened.keys())
                tensors = {} if about is None else {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise MethodError(f"evidence scorer {path}: {file.name} is damaged ({type(error).__name__}).") from error
        if about is None:
            kind = "an importance scorer" if set(names) >= set(KEYS) else "no evidence scorer"
            raise MethodError(
                f"evidence scorer {path}: {file.name} holds {kind}; give one that `foveate train evidence` wrote."
            )
        if broken := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
            raise MethodError(f"evidence scorer {path}: {file.name} is damaged ({broken} holds values not finite).")
        try:
            scorer = cls(EvidenceShape(**json.loads(about)), source=str(path))
            scorer.load_state_dict(tensors)
        except (ValueError, TypeError, RuntimeError) as error:  # MethodError, of a shape that cannot be, is one of them
            raise MethodError(f"evidence scorer {path}: {file.name} is damaged ({type(error).__name__}).") from error
        return scorer.requires_grad_(False).eval()


def find_evidence(model_name_or_path: str) -> EvidenceScorer | None:
    """The evidence scorer in a model's own folder, ``foveate-evidence.safetensors``; None where there is none."""
    path = expand(model_name_or_path) / SHIPPED
    return EvidenceScorer.load(path) if model_name_or_path and path.is_file() else None


class _Block(nn.Module):
    """A layer of attention and a feed-forward layer, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        shape = hidden.shape[:2]
        q, k, v = self.qkv(self.first(hidden)).view(*shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + self.merge(read.transpose(1, 2).reshape(*shape, -1))
        written: Tensor = hidden + self.down(functional.gelu(self.up(self.second(hidden))))
        return written


def _waves(coordinates: Tensor) -> Tensor:
    """Sines and cosines of (B, N, 3) places, of half-waves of 1, 2, 4, ... tokens: (B, N, 6 * _WAVES) float32."""
    steps = math.pi / 2.0 ** torch.arange(_WAVES, dtype=torch.float32, device=coordinates.device)
    angles = (coordinates.clamp_min(0).float()[..., None] * steps).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def _stretch(scores: Tensor, valid: Tensor) -> Tensor:
    """Scores from 0 to 1 over the valid tokens of each row."""
    lowest = scores.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    highest = scores.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    return (scores - lowest) / (highest - lowest + 1e-6)


def _copies(base: LearnedScorer) -> list[nn.Parameter]:
    tensors = (base.q_weight, base.q_bias, base.k_weight, base.k_bias)
    return [nn.Parameter(tensor.detach().float().clone()) for tensor in tensors]


# What the names of a scorer's tensors begin with; no weights of a model that foveate serves do.
PARTS = frozenset(name.partition(".")[0] for name in EvidenceScorer(EvidenceShape(1, 1, 1, 1, 1)).state_dict())
