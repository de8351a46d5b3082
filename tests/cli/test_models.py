"""Commands on checkpoints that did not come with foveate: chat templates, rectangular grids, priors of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny_models as zoo_module
from cli import checkpoint_files as checkpoints
from cli.run_command import assert_one_sentence, run
from foveate.data.loading import load
from foveate.importance import AttentionPrior, default_prior_path
from foveate.testbed import load_shipped, scenes

COLOUR = "What colour is the sign?"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llava(tmp_path_factory.mktemp("models") / "shapes-llava")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.qwen(tmp_path_factory.mktemp("models") / "tiny-qwen")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "scene.png"
    path.parent.mkdir()
    scenes()[0].image.save(path)
    return path


def test_a_llava_with_a_chat_template_gets_the_prompt_of_the_template(llava: Path) -> None:
    image, processor = scenes()[0].image, load_shipped()[1]
    session = load(str(llava))
    for images in ([image], [image, scenes()[1].image]):
        made = session.inputs(images, COLOUR)
        shown = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        words = processor.tokenizer(COLOUR.lower(), add_special_tokens=False)["input_ids"]
        wanted = [processor.tokenizer.bos_token_id, *[processor.image_token_id] * 196 * len(images), *words]
        assert made["input_ids"].tolist() == [wanted]
        assert torch.equal(made["pixel_values"], shown.to(session.model.dtype))


def test_ask_a_llava_with_a_chat_template(llava: Path, scene: Path) -> None:
    result = run("ask", scene, COLOUR, "--model", llava, "--keep", "25%", "--compare")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("red") == 2
    assert "49 of 196" in result.stdout


def test_a_qwen_without_torchvision_gets_the_prompt_of_the_template(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_torchvision(*_: object, **__: object) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not found.")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", no_torchvision)
    images = [zoo_module.picture(56, 84), zoo_module.picture(112, 56, seed=1)]
    made = load(str(qwen)).inputs(images, "what is it?")
    wanted = zoo_module.inputs(zoo_module.qwen2_5_vl(), [images], ["what is it?"])
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


def test_another_import_error_is_no_reason_to_do_without(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ImportError("cannot import name 'x'")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", broken)
    with pytest.raises(Exception, match=r"cannot load the model .*cannot import name 'x'"):
        load(str(qwen))


def test_ask_and_view_a_qwen(qwen: Path, tmp_path: Path) -> None:
    picture, output = tmp_path / "wide.png", tmp_path / "kept.png"
    zoo_module.picture(112, 196).save(picture)
    result = run("ask", picture, "what is in the picture?", "--model", qwen, "--keep", "50%", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output
    assert "14 of 28" in result.stdout
    result = run("view", picture, "--model", qwen, "--methods", "idpruner,fastv", "-o", output, "--set", "layer=1")
    assert result.exit_code == 0, result.output
    width, height = Image.open(output).size
    assert width > 3 * height  # three panels of 7 x 4 cells in a row


def test_calibrate_saves_where_d2pruner_looks(
    llava: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    view = ("view", scene, "--methods", "d2pruner", "--model", llava, "-o", tmp_path / "kept.png")
    before = run(*view)
    assert before.exit_code == 2
    assert "foveate calibrate" in before.stderr
    result = run("calibrate", llava, "--images", scene.parent)
    assert result.exit_code == 0, result.output
    prior = AttentionPrior.load(default_prior_path(str(llava), 2))
    assert (prior.model, prior.layer, prior.images) == ("shapes-llava", 2, 1)  # no folder of this machine in it
    assert tuple(prior.map.shape) == (14, 14)
    assert run(*view).exit_code == 0


def test_a_prior_of_another_model_or_layer_is_one_sentence(llava: Path, scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    for model, layer, words in (("owner/other", 2, "measured on owner/other"), ("shapes-llava", 3, "layer 3")):
        AttentionPrior(torch.ones(14, 14), layer, model, 1, "p").save(path)
        result = run("ask", scene, COLOUR, "--model", llava, "--method", "d2pruner", "--set", f"prior={path}")
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_without_a_network_the_cache_has_to_do(monkeypatch: pytest.MonkeyPatch, scene: Path, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("tried again"))
    result = run("ask", scene, COLOUR, "--model", "owner/not-in-the-cache")
    assert_one_sentence(result, "the hub cannot be reached", "owner/not-in-the-cache")

    asked: list[bool] = []

    def look(*_: object, local_files_only: bool, **__: object) -> None:
        asked.append(local_files_only)
        raise OSError("looked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", look)
    monkeypatch.setattr("foveate.importance.checkpoints.checkpoint_folder", lambda name: tmp_path)
    assert_one_sentence(run("ask", scene, COLOUR, "--model", "owner/in-the-cache"), "looked")
    assert asked == [True]


def test_a_picture_in_tiles_is_drawn_whole(tmp_path: Path) -> None:
    model, output = checkpoints.internvl(tmp_path / "internvl"), tmp_path / "kept.png"
    zoo_module.picture(112, 224).save(tmp_path / "wide.png")
    result = run("view", tmp_path / "wide.png", "--model", model, "--methods", "random,tome", "-o", output)
    assert result.exit_code == 0, result.output
    width, height = Image.open(output).size
    assert width > 4 * height  # three panels, each twice as wide as high


def test_panels_say_budget_merging_and_cropping(monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.cli.hyperparameters import configure_methods
    from foveate.cli.view import kept_panels

    methods = configure_methods(["random", "avgpool"], ())
    session = load("testbed-llava")
    crop = {"do_pad": False, "do_resize": True, "size": {"shortest_edge": 112}, "do_center_crop": True}
    for name, value in crop.items():  # as LLaVA-1.5 shows its model pictures
        setattr(session.processor.image_processor, name, value)
    panels = kept_panels(session, Image.new("RGB", (200, 100)), COLOUR, methods, 0.25)
    assert [panel[:2] for panel in panels] == [
        ("centre of the original", "196 visual tokens, cropped to 100 x 100 of 200 x 100"),
        ("random, 25%", "keeps 49 of 196 tokens"),
        ("avgpool, 25%", "merges 196 tokens into 49"),
    ]
