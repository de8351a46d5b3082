"""What a server's set-up rules out is known when it starts, and said when it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from foveate import FoveateError
from foveate.models.qwen2_5_vl import Qwen25VLAdapter
from foveate.serving.vllm.config import LIMITS_KEY, ServingConfig, limits_of
from foveate.serving.vllm.family import QwenFamily


def vllm_config(**changed: Any) -> Any:
    """The little of vLLM's configuration that is looked at."""
    facts: dict[str, Any] = {
        "pruning": False,
        "tp_mode": "weights",
        "pp": 1,
        "drafts": None,
        "dbo": False,
        "lora": None,
    }
    facts |= {"graphs": False, "compiled": False, **changed}
    multimodal = SimpleNamespace(
        is_multimodal_pruning_enabled=lambda: facts["pruning"], mm_encoder_tp_mode=facts["tp_mode"]
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=multimodal),
        parallel_config=SimpleNamespace(pipeline_parallel_size=facts["pp"], enable_dbo=facts["dbo"]),
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=facts["graphs"], compile_mm_encoder=facts["compiled"]),
        speculative_config=facts["drafts"],
        lora_config=facts["lora"],
    )


@pytest.mark.parametrize(
    ("changed", "key", "says"),
    [
        ({"pruning": True}, "all", "--video-pruning-rate"),
        ({"graphs": True}, "all", "cudagraph_mm_encoder"),
        ({"pp": 2}, "all", "pipeline parallelism"),
        ({"drafts": object()}, "all", "speculative decoding"),
        ({"drafts": SimpleNamespace(method="eagle3")}, "all", "(eagle3)"),
        ({"dbo": True}, "all", "dual batch overlap"),
        ({"lora": SimpleNamespace(enable_tower_connector_lora=True)}, "all", "LoRA in the vision tower"),
        ({"tp_mode": "data"}, "encoder", "mm_encoder_tp_mode='data'"),
        ({"compiled": True}, "encoder", "compile_mm_encoder"),
    ],
)
def test_limits(changed: dict[str, Any], key: str, says: str) -> None:
    limits = limits_of(vllm_config(**changed), mrope=True)
    assert set(limits) == {key} and says in limits[key]


def test_a_plain_server_has_none_and_only_mrope_needs_one_rank_for_all_layers() -> None:
    assert limits_of(vllm_config(), mrope=True) == {}
    assert limits_of(vllm_config(pp=2, drafts=object()), mrope=False) == {}


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix"])
def test_drafts_that_read_no_positions_are_no_hindrance(method: str) -> None:
    assert limits_of(vllm_config(drafts=SimpleNamespace(method=method)), mrope=True) == {}


class Family(QwenFamily):
    adapter_class = Qwen25VLAdapter


class WholeFamily(Family):
    whole_encoder = "it is of one piece"


def server(
    limits: dict[str, str], settings: Any = None, family: type[QwenFamily] = Family, **processor: Any
) -> ServingConfig:
    text, vision = SimpleNamespace(hidden_size=64, num_hidden_layers=2), SimpleNamespace(hidden_size=32, depth=4)
    known = {"get_text_config": lambda: text, "vision_config": vision, LIMITS_KEY: limits}
    config = SimpleNamespace(foveate=settings, **known)
    multimodal = SimpleNamespace(mm_processor_kwargs=processor)
    return ServingConfig(family, SimpleNamespace(hf_config=config, model="tiny", multimodal_config=multimodal))


def test_requests_meet_the_limits_only_when_they_ask_for_what_is_ruled_out() -> None:
    off = server({"all": "drafts are on."})
    assert not off.prunes and off.resolve({}) is None and off.resolve({"foveate_keep": 1.0}) is None
    with pytest.raises(FoveateError, match=r"drafts are on\."):
        off.resolve({"foveate_keep": 0.5})
    with pytest.raises(FoveateError, match=r"cdpruner needs the input embeddings .* once for all prompts"):
        server({}).resolve({"foveate_keep": 0.5, "foveate_method": "cdpruner"})
    asked = {"foveate_keep": 0.5, "foveate_method": "cdpruner", "foveate_query": "what?"}
    assert server({}).resolve(asked).query == "what?"  # type: ignore[union-attr]
    assert server({}, {"query": "prompt"}).resolve({"foveate_keep": 0.5, "foveate_method": "divprune"}).query is None  # type: ignore[union-attr]
    with pytest.raises(FoveateError, match="divprune chooses by the image alone; leave out foveate_query"):
        server({}).resolve(asked | {"foveate_method": "divprune"})
    for name in ("hiprune", "vscan"):
        with pytest.raises(FoveateError, match=rf"{name} needs .* layers .* listens to one layer only"):
            server({}).resolve({"foveate_keep": 0.5, "foveate_method": name})
    deaf = server({"encoder": "it is compiled."})
    assert deaf.resolve({"foveate_keep": 0.5, "foveate_method": "divprune"}) is not None
    with pytest.raises(FoveateError, match=r"idpruner needs .* but it is compiled\."):
        deaf.resolve({"foveate_keep": 0.5})


def test_defaults_in_the_wrong_place_do_not_go_unnoticed() -> None:
    assert server({}, max_pixels=1000).prunes
    with pytest.raises(FoveateError, match="give defaults by --hf-overrides"):
        server({}, foveate_keep=0.5)


def test_a_server_whose_default_is_ruled_out_does_not_start() -> None:
    with pytest.raises(FoveateError, match="drafts are on"):
        server({"all": "drafts are on."}, {"keep": 0.5})
    with pytest.raises(FoveateError, match="give the question as foveate_query"):
        server({}, {"method": "cdpruner", "keep": 0.5})
    assert server({}, {"method": "cdpruner", "keep": 0.5, "query": "prompt"}).prunes


def inside(name: str = "divprune", block: int = 3) -> dict[str, Any]:
    return {"method": [{"name": name, "encoder_block": block}, "idpruner"], "keep": [0.5, 0.1]}


def test_a_server_that_prunes_inside_its_encoder() -> None:
    made = server({}, inside())
    assert [stage.name for stage in made.inside] == ["divprune@encoder:3"]
    assert made.resolve({}).encoder == (0.5,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "limits", "family", "says"),
    [
        ({**inside(), "method": [inside()["method"][0], "avgpool"]}, {}, Family, "avgpool reads whole grids"),
        (inside(block=4), {}, Family, "this model allows blocks 0 to 3"),
        (inside("cdpruner"), {}, Family, "not there yet inside the vision encoder"),
        (inside("hiprune"), {}, Family, "listens to one layer only"),
        (inside("visionselector"), {}, Family, "needs a trained scorer"),
        (
            inside(),
            {"encoder": "it is compiled; do not."},
            Family,
            "leave inside .* in this server: it is compiled; use a",
        ),
        (inside(), {}, WholeFamily, "cannot be pruned inside its vision encoder in vLLM, because it is of one piece"),
    ],
)
def test_a_server_that_cannot_prune_inside_its_encoder_does_not_start(
    settings: Any, limits: dict[str, str], family: type[QwenFamily], says: str
) -> None:
    with pytest.raises(FoveateError, match=says):
        server(limits, settings, family)
