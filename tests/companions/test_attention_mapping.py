"""IAM: one model in both places changes nothing, the rules against a slow reading of them, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from tests import tiny_models
from torch import Tensor

import foveate
from foveate.companions.attention_mapping import choose_layers, map_attention, rank_layers
from foveate.errors import ModelError, RuntimeStateError

_VOCABULARY = 50


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _model(kind: str = "Llama", layers: int = 5, heads: int = 4, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(tf, f"{kind}Config")(
        vocab_size=_VOCABULARY,
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.3,
        **settings,
    )
    return getattr(tf, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def large() -> Any:
    return _model()


@pytest.fixture(scope="module")
def small() -> Any:
    return _model(layers=2, heads=2, seed=1)


def _prompt(length: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(2, _VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def _generate(model: Any, ids: Tensor, new: int = 12, **kwargs: Any) -> tuple[Tensor, Tensor]:
    kwargs.setdefault("attention_mask", torch.ones_like(ids))
    out = model.generate(
        ids, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True, **kwargs
    )
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize(
    "kind", ["Llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Qwen2", "Qwen3", "Mistral"))]
)
@pytest.mark.parametrize(("length", "entry", "longest"), [(20, 8, 64), (20, 8, 9), (5, 9, 9)])
def test_a_model_mapped_onto_a_copy_of_itself_says_the_same(kind: str, length: int, entry: int, longest: int) -> None:
    settings = {"sliding_window": None} if kind == "Mistral" else {}
    model = _model(kind, layers=3, **settings)
    ids = _prompt(length, 2)
    sequences, logits = _generate(model, ids)
    for other in (copy.deepcopy(model), model):
        with map_attention(model, other, range(3), entry=entry, longest=longest) as mapping:
            mapped, theirs = _generate(model, ids)
        assert torch.equal(sequences, mapped)
        assert torch.allclose(logits, theirs, atol=1e-4)
        report = mapping.report()
        assert report.layers == (0, 1, 2) and report.mapped_key_bytes == report.key_bytes == 0
        for layer in range(3):
            assert report.heads[layer].tolist() == [[4 * layer + head for head in range(4)]] * 2


@pytest.mark.parametrize(
    "zoo", ["qwen2_5_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llava", "qwen2_vl", "qwen3_vl"))]
)
def test_vision_language_models_mapped_onto_themselves_say_the_same(zoo: str) -> None:
    kit = getattr(tiny_models, zoo)()
    inputs = tiny_models.inputs(kit, [[tiny_models.picture()], [tiny_models.picture(seed=1)]])
    length = inputs["input_ids"].shape[1]
    said = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": kit.visual_ids, "output_logits": True}
    said["return_dict_in_generate"] = True
    before = kit.model.generate(**inputs, **said)
    count = len(kit.model.get_decoder().layers)
    with map_attention(kit.model, kit.model, range(1, count), entry=4, longest=length // 2) as mapping:
        after = kit.model.generate(**inputs, **said)
    assert mapping.report().layers == tuple(range(1, count)) and mapping.report().mapped_key_bytes == 0
    assert torch.equal(before.sequences, after.sequences)
    assert torch.allclose(torch.stack(before.logits), torch.stack(after.logits), atol=1e-3)


def test_no_mapped_layer_is_the_identity(large: Any, small: Any) -> None:
    ids = _prompt(30)
    sequences, logits = _generate(large, ids)
    with map_attention(large, small, ()) as mapping:
        mapped, theirs = _generate(large, ids)
        with pytest.raises(RuntimeStateError, match="nothing to report"):
            mapping.report()
    assert torch.equal(sequences, mapped) and torch.equal(logits, theirs)


def test_detached_models_are_as_before(large: Any, small: Any) -> None:
    ids = _prompt(30)
    before = [_generate(model, ids)[1] for model in (large, small)]
    with map_attention(large, small, (2, 4), entry=8):
        mapped = _generate(large, ids)[1]
    assert not torch.allclose(before[0], mapped, atol=1e-2)
    assert all(
        torch.equal(logits, _generate(model, ids)[1]) for model, logits in zip((large, small), before, strict=True)
    )


def test_bytes_fall_as_counted(large: Any, small: Any) -> None:
    ids = _prompt(30, 3)
    with map_attention(large, small, (2, 4), entry=8) as mapping:
        out = large.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, return_dict_in_generate=True
        )
    report = mapping.report()
    tokens = 34  # the last one is not read
    one = 3 * 2 * tokens * 8 * 4  # batch, key heads, tokens, width, bytes
    assert report.tokens == tokens and report.layers == (2, 4)
    assert (report.key_bytes, report.value_bytes, report.small_bytes) == (3 * one, 5 * one, 4 * one)
    assert (report.mapped_key_bytes, report.unmapped_bytes) == (0, 10 * one)
    assert report.saved == pytest.approx(1 - 12 / 10)
    held = out.past_key_values.layers
    assert [layer.keys.untyped_storage().nbytes() for layer in held] == [one, one, 0, one, 0]


def _maps(model: Any, ids: Tensor) -> Tensor:
    """(layers, B, H, L, L) by the model's own eager attention."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    return torch.stack(eager(ids, output_attentions=True).attentions)


@pytest.mark.parametrize("measure", ["cosine", "pearson"])
def test_heads_are_matched_by_the_whole_map_of_the_first_tokens(large: Any, small: Any, measure: Any) -> None:
    ids, until = _prompt(30, 2), 11
    theirs = _maps(small, ids[:, :until]).transpose(0, 1).flatten(1, 2).flatten(2).double()  # (B, N, until ** 2)
    with map_attention(large, small, (1,), entry=4, longest=until, measure=measure) as mapping:
        large(ids)
    mine = _maps(large, ids[:, :until])[1].flatten(2).double()
    if measure == "pearson":
        mine, theirs = (one - one.mean(-1, keepdim=True) for one in (mine, theirs))
    best, heads = torch.cosine_similarity(mine[:, :, None], theirs[:, None], dim=-1).max(-1)
    assert torch.equal(mapping.report().heads[1], heads)
    assert torch.allclose(mapping.report().similarity[1], best, atol=1e-5)


def test_a_mapped_layer_gives_what_the_rows_of_the_small_model_give(large: Any, small: Any) -> None:
    """The last layer is mapped, so that all below it is the large model's own."""
    ids, until = _prompt(24, 2), 10
    with map_attention(large, small, (4,), entry=4, longest=until) as mapping:
        logits = large(ids).logits
    layer, states = large.model.layers[4], large(ids, output_hidden_states=True).hidden_states[4]
    maps, normed = _maps(small, ids), layer.input_layernorm(states)
    own = _maps(large, ids)[4]
    attended = []
    for row in range(2):
        heads = []
        for head in range(4):
            values = layer.self_attn.v_proj(normed[row])[:, 8 * (head // 2) : 8 * (head // 2) + 8]
            match = int(mapping.report().heads[4][row, head])
            rows = torch.cat([own[row, head, :until], maps[match // 2, row, match % 2, until:]])
            heads.append(rows @ values)
        attended.append(layer.self_attn.o_proj(torch.cat(heads, -1)))
    states = states + torch.stack(attended)
    states = states + layer.mlp(layer.post_attention_layernorm(states))
    assert torch.allclose(logits, large.lm_head(large.model.norm(states)), atol=1e-4)


def test_short_prompts_are_mapped_once_they_are_long_enough(large: Any, small: Any) -> None:
    ids = _prompt(5)
    sequences, _ = _generate(large, ids, 20)
    with map_attention(large, small, (2, 3, 4), entry=12) as mapping:
        cache, at = None, []
        for step in range(5, 20):
            fed = sequences[:, :5] if cache is None else sequences[:, step - 1 : step]
            cache = large(fed, past_key_values=cache).past_key_values
            at.append((mapping.report().tokens, mapping.report().layers))
        stepwise = mapping.report()
        large(sequences[:, :12])
        whole = mapping.report()
    assert all(layers == (() if tokens < 12 else (2, 3, 4)) for tokens, layers in at)
    assert all(torch.equal(stepwise.heads[layer], whole.heads[layer]) for layer in (2, 3, 4))  # by rows or at once
    assert torch.allclose(stepwise.similarity[2], whole.similarity[2], atol=1e-6)


def test_a_prompt_in_pieces_is_the_prompt(large: Any, small: Any) -> None:
    ids = _prompt(40)
    with map_attention(large, small, (2, 4), entry=8, longest=16):
        whole = large(ids).logits[:, -1]
        cache = large(ids[:, :16]).past_key_values
        kept = copy.deepcopy(cache)
        ends = [large(ids[:, 16:], past_key_values=one).logits[:, -1] for one in (cache, kept)]
        chunked = _generate(large, ids, 1, prefill_chunk_size=16)[1][:, 0]
    assert all(torch.allclose(whole, one, atol=1e-4) for one in (*ends, chunked))


def test_padding_changes_nothing(large: Any, small: Any) -> None:
    long, short = _prompt(20), _prompt(14, seed=1)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 6, dtype=torch.long), short], 1)])
    mask = (padded > 0).long()
    with map_attention(large, small, (2, 4), entry=4) as mapping:
        together = _generate(large, padded, 6, attention_mask=mask)[1]
        heads = mapping.report().heads
        alone = [_generate(large, ids, 6)[1] for ids in (long, short)]
        assert torch.equal(heads[4][1:], mapping.report().heads[4])
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


def test_layers_are_ranked_by_their_best_matches(large: Any, small: Any) -> None:
    prompts = [{"input_ids": _prompt(16, 2)}, {"input_ids": _prompt(20, 1, seed=3)}]
    best = []
    for prompt in prompts:
        mine, theirs = (_maps(model, prompt["input_ids"]).flatten(3).double() for model in (large, small))
        theirs = theirs.transpose(0, 1).flatten(1, 2)
        # Each layer of a forward in which all are mapped sees what the large model gives it: all is still its own.
        best.append(torch.cosine_similarity(mine[:, :, :, None], theirs[None, :, None], dim=-1).max(-1).values.mean(2))
    expected = torch.cat(best, 1).mean(1)
    ranked = rank_layers(large, small, prompts)
    assert [one.layer for one in ranked] == expected.argsort(descending=True).tolist()
    assert torch.allclose(
        torch.tensor([one.similarity for one in ranked]).double(), expected.sort(descending=True).values
    )
    order = [one.layer for one in ranked if one.layer]  # one of five is never mapped
    assert choose_layers(large, small, prompts, 0.5) == tuple(sorted(order[:2]))
    assert choose_layers(large, small, prompts, 0) == ()
    with pytest.raises(ModelError, match=r"5 of 5 layers.*0 to 0\.80"):
        choose_layers(large, small, prompts, 1.0)
    with pytest.raises(ModelError, match="there are none"):
        rank_layers(large, small, [])


def test_models_that_do_not_fit_are_refused(large: Any, small: Any) -> None:
    with pytest.raises(ModelError, match="different families"):
        map_attention(large, _model("Qwen2"), (1,))
    other = _model(layers=2)
    other.config.vocab_size = 60
    with pytest.raises(ModelError, match="other tokens"):
        map_attention(large, other, (1,))
    windowed = _model("Mistral", layers=2, sliding_window=8)
    with pytest.raises(ModelError, match="sliding window"):
        map_attention(windowed, windowed, (1,))
    with pytest.raises(ModelError, match="not a causal language model"):
        map_attention(torch.nn.Linear(2, 2), small, (1,))
    with pytest.raises(ModelError, match="attends in a way"):
        mixture = tiny_models.qwen3_vl_moe().model
        map_attention(mixture, mixture, (1,))
    for wrong, said in (
        ({"layers": (5,)}, "has 0 to 4"),
        ({"entry": 9, "longest": 8}, "entry=9"),
        ({"measure": "l2"}, "l2"),
    ):
        with pytest.raises(ModelError, match=said):
            map_attention(large, small, **{"layers": (1,), **wrong})


def test_calls_that_cannot_be_mapped_are_refused(large: Any, small: Any) -> None:
    ids = _prompt(12)
    cache = large(ids).past_key_values
    with map_attention(large, small, (2, 4), entry=4):
        with pytest.raises(RuntimeStateError, match="without beams"):
            _generate(large, ids, num_beams=2)
        with pytest.raises(RuntimeStateError, match="without an assistant"):
            _generate(large, ids, assistant_model=_model(layers=1, seed=5))
        with pytest.raises(RuntimeStateError, match="plain DynamicCache"):
            _generate(large, ids, cache_implementation="static")
        with pytest.raises(RuntimeStateError, match="both models in step"):
            large(ids, past_key_values=cache)
        with pytest.raises(RuntimeStateError, match="input_ids alone"):
            large(inputs_embeds=torch.zeros(1, 3, 32))
        with pytest.raises(RuntimeStateError, match="called by itself"):
            large.model(ids)
        large(ids)  # what failed left nothing behind


def test_pruning_is_refused_whichever_comes_first() -> None:
    kit = tiny_models.llava()
    with foveate.prune(kit.model, "divprune", keep=0.5), pytest.raises(RuntimeStateError, match=r"foveate\.guided"):
        map_attention(kit.model, kit.model, (1,))
    with (
        map_attention(kit.model, kit.model, (1,), entry=4),
        foveate.prune(kit.model, "divprune", keep=0.5),
        pytest.raises(RuntimeStateError, match=r"foveate\.guided"),
    ):
        kit.model(**tiny_models.inputs(kit, [[tiny_models.picture()]]))
