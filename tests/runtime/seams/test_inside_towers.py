"""Tokens that leave at a block of a tower, in which each image is a row: as if its blocks never had their patches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate import InEncoder
from foveate.methods import Method
from foveate.models import adapter_of
from foveate.tokens import Cue, Selection, VisualTokens
from runtime.helpers import TEXTS, gap, generate, logits, pair, single, torch_flops
from runtime.seams.test_inside_encoder import watched
from tiny_models import Zoo, picture

TOWERS = [
    zoo_module.llava,  # CLIP with its CLS token, features of the last layer but one
    zoo_module.internvl,  # InternViT with CLS, pixel shuffle
    *([] if tiny_families.EARLIER else [tiny_families.gemma3]),  # SigLIP, squares of patches averaged
    tiny_families.idefics3,  # SigLIP with masks, tiles, pixel shuffle
    tiny_families.vipllava,  # the features of several layers
    tiny_families.ovis2,
]


@pytest.fixture(params=TOWERS, ids=lambda make: make.__name__)
def tower(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


@dataclass(frozen=True)
class Uneven(Method):
    """Keeps other numbers of other images, and remembers what it was shown; at least one token goes on."""

    name = "uneven"
    may_drop_all = True  # which holds before the language model only
    asks: frozenset[Cue] = frozenset()
    seen: list[VisualTokens] = field(default_factory=list, compare=False)

    @property
    def needs(self) -> frozenset[Cue]:
        return self.asks

    def counts(self, tokens: VisualTokens) -> Tensor:
        return torch.tensor([[5, 2, 0][row % 3] for row in range(len(tokens.grids))])

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(tokens)
        order = tokens.valid.cumsum(1) * 7 % 5 * 100 - tokens.valid.cumsum(1)
        return Selection(foveate.selection.topk(order.float(), count, valid=tokens.valid))


def three(z: Zoo) -> dict[str, Tensor]:
    """Two prompts with three images."""
    drawn = [picture(84, 112, seed) for seed in range(3)]
    return zoo_module.inputs(z, [drawn[:2], drawn[2:]], TEXTS)


def positions_of(z: Zoo, kept: Tensor, grid: foveate.Grid, length: int) -> Tensor:
    """(n,) bool: the positions of one row that stay where its tokens `kept` do, a CLS token before them included."""
    side = adapter_of(z.model).merge
    patches = kept.view(grid.rows, grid.columns).repeat_interleave(side, 0).repeat_interleave(side, 1).flatten()
    return torch.cat([torch.ones(length - len(patches), dtype=torch.bool), patches])


@pytest.mark.parametrize(("make", "block"), list(zip(TOWERS, itertools.cycle([1, 0]), strict=False)))
def test_blocks_never_see_what_left(make: Any, block: int) -> None:
    """Each image's survivors alone through the blocks, called directly, give what the pruned encoder gives."""
    tower = make()
    inputs, adapter, spy = three(tower), adapter_of(tower.model), Uneven()
    layers = adapter.vision_layers()[: adapter.feature_blocks()]
    with watched(layers) as calls:
        plain = logits(tower, inputs)
    with foveate.prune(tower.model, InEncoder(spy, block), keep="auto") as pruning, watched(layers[-1:]) as given:
        logits(tower, inputs)
        images = pruning.report().images
    assert {image.tokens for image in images} == {5, 2, 1}
    entering, found = calls[block][0][0], given[0][2]
    for row, image in enumerate(images):
        stays = positions_of(tower, image.kept, image.grid, entering.shape[1])
        hidden = entering[row][stays][None]
        with torch.no_grad():
            for layer, (args, kwargs, _) in zip(layers[block:], calls[block:], strict=True):
                mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
                if mask is not None:
                    mask = mask[row : row + 1, :, stays][..., stays]
                takes = {} if "internvl" in tower.name else {"attention_mask": mask}
                hidden = layer(hidden, **takes)
        assert torch.allclose(found[row][stays], hidden[0], atol=1e-5)
        shown = entering[row][positions_of(tower, torch.ones_like(image.kept), image.grid, entering.shape[1])]
        means = shown[len(shown) - len(image.kept) * adapter.merge**2 :].view(
            image.grid.rows, adapter.merge, image.grid.columns, adapter.merge, -1
        )
        assert torch.allclose(spy.seen[0].features[row], means.mean((1, 3)).flatten(0, 1), atol=1e-6)
    assert torch.equal(logits(tower, inputs), plain)


def test_merging_is_done_patch_by_patch() -> None:
    """Patches of a pair of tokens become their means, the first with the first and so on; CLS stays as it was."""

    @dataclass(frozen=True)
    class Pairs(Method):
        name = "pairs"

        def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
            rows, n = tokens.valid.shape
            target, keep = torch.arange(n) // 2 * 2, torch.arange(n) % 2 == 0
            return Selection(keep.expand(rows, n).clone(), target.expand(rows, n), torch.full((rows, n), 0.5))

    tower, grid = zoo_module.internvl(), foveate.Grid(4, 4)
    inputs, layer = three(tower), adapter_of(tower.model).vision_layers()[1]
    with watched([layer]) as whole:
        logits(tower, inputs)
    entering = whole[0][0][0]
    with foveate.prune(tower.model, InEncoder(Pairs(), 1), keep=0.5), watched([layer.attention]) as calls:
        logits(tower, inputs)
    given = calls[0][0][0] if calls[0][0] else calls[0][1]["hidden_states"]
    cells = entering[:, 1:].view(3, grid.rows, 2, grid.columns, 2, -1).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    merged = (cells[:, ::2] + cells[:, 1::2]) / 2  # (3, 8, 4, d)
    line = merged.view(3, 8, 2, 2, -1).transpose(1, 2).flatten(1, 3)  # as a picture of one line of tokens
    with torch.no_grad():
        wanted = layer.layernorm_before(torch.cat([entering[:, :1], line], 1))
    assert torch.allclose(given, wanted, atol=1e-5)


def test_generation(tower: Zoo) -> None:
    """Cached equals uncached, batched equals single, later methods read what is left, whole is whole."""
    both, plain = pair(tower), logits(tower, pair(tower))
    methods = [InEncoder("tome", 1), foveate.get_method("idpruner", importance="encoder_attention"), "fastv"]
    with foveate.prune(tower.model, methods, keep=[0.8, 0.5, 0.25]) as pruning:
        cached = generate(tower, both)
        report = pruning.report()
        assert gap(cached, generate(tower, both, use_cache=False)) < 2e-5
        alone = generate(tower, single(tower))
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
    assert [image.tokens for image in report.images] == [
        foveate.Budget(0.25).count(image.tokens_before) for image in report.images
    ]
    with foveate.prune(tower.model, InEncoder("divprune", 1), keep=10**6):
        assert torch.equal(logits(tower, both), plain)
    assert torch.equal(logits(tower, both), plain)
    assert not any("forward" in vars(layer) for layer in adapter_of(tower.model).vision_layers())


@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.internvl], ids=lambda make: make.__name__)
def test_later_methods_read_the_encoder_of_those_that_are_left(make: Any) -> None:
    """The CLS row and the features of each image's survivors, as of a picture that had only them; 0 of the others."""
    tower = make()
    adapter, inputs, spy = adapter_of(tower.model), three(tower), Uneven(frozenset({Cue.ENCODER_ATTENTION}))
    module, calls = adapter.attention_module(), []
    with foveate.prune(tower.model, [InEncoder(Uneven(), 1), spy], keep=["auto", 0.9]):
        handle = module.register_forward_hook(lambda _, args, kw, out: calls.append((args, kw)), with_kwargs=True)
        logits(tower, inputs)
        handle.remove()
    tokens = spy.seen[0]
    assert sorted(tokens.valid.sum(1).tolist()) == [1, 2, 5] and len(calls) == 3  # one call for each count
    for count, (args, kwargs) in zip((1, 2, 5), calls, strict=True):
        hidden = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            query, key = (getattr(module, f"{kind}_proj")(hidden) for kind in "qk")
        heads = module.num_heads
        query, key = (values.unflatten(-1, (heads, -1)).transpose(1, 2) for values in (query, key))
        row = (query[:, :, :1] @ key.mT * module.scale).softmax(-1).mean(1)[0, 0, 1:]
        (image,) = (i for i in range(3) if int(tokens.valid[i].sum()) == count)
        side = adapter.merge
        means = row.view(side, count, side).mean((0, 2))
        found = tokens.cue(Cue.ENCODER_ATTENTION)[image]
        assert torch.allclose(found[tokens.valid[image]], means, atol=1e-6) and not found[~tokens.valid[image]].any()


@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.internvl], ids=lambda make: make.__name__)
def test_flops_are_those_that_torch_counts(make: Any) -> None:
    tower = make()
    inputs, adapter = pair(tower), adapter_of(tower.model)

    def counted() -> int:
        return torch_flops(tower.model, lambda: adapter.base.get_image_features(inputs["pixel_values"]))

    plain = counted()
    with foveate.prune(tower.model, InEncoder("stride", 1), keep=0.3) as pruning:
        logits(tower, inputs)
        report, short = pruning.report(), counted()
    assert report.vision_flops_before - report.vision_flops == plain - short > 0


def test_refusals() -> None:
    llava = zoo_module.llava()
    with pytest.raises(foveate.MethodError, match=r"at block 2 of .*, but this model allows blocks 0 to 1"):
        foveate.attach(llava.model, InEncoder("divprune", 2))  # the features are those of layer -2 of three
    for make in (tiny_families.pixtral, tiny_families.kimi_k25, tiny_families.llama4):
        with pytest.raises(foveate.ModelError, match=r"does not know how the blocks of that of .* go on"):
            foveate.attach(make().model, InEncoder("divprune", 0))
