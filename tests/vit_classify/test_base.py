"""Finding a base: every source, and the message of every way in which it can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from vit_classify.base import find_base, load_clip, load_tower
from vit_classify.checkpoint import CONFIG_FILE, WEIGHTS_FILE, write_local
from vit_classify.config import ModelConfig


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def architecture(tiny_cfg: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The tiny model as two architectures that open_clip knows by name; returns the one with QuickGELU."""
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "Tiny-quickgelu", tiny_cfg)
    monkeypatch.setitem(known, "Tiny", {**tiny_cfg, "quick_gelu": False})
    return "Tiny-quickgelu"


def put_into_cache(cache: Path, repository: str, folder: Path, *names: str) -> None:
    """Lay files out as huggingface_hub does."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    snapshot = entry / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(folder / name, snapshot / name)


def undeclared(tiny_base: Path, path: Path) -> Path:
    """The tiny weights without a word on their activation, as OpenAI's come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(tiny_base / WEIGHTS_FILE), path)
    return path


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# -- what works


def test_a_local_folder_gives_the_weights_back(tiny_base: Path, tiny_clip: open_clip.CLIP) -> None:
    base = find_base(ModelConfig(f"local-dir:{tiny_base}"))
    assert same_weights(load_clip(base), tiny_clip)
    assert same_weights(load_tower(base), tiny_clip.visual)


def test_a_saved_folder_opens_in_open_clip_itself(tiny_base: Path, tiny_clip: open_clip.CLIP) -> None:
    assert same_weights(open_clip.create_model(f"local-dir:{tiny_base}"), tiny_clip)


def test_a_hub_repository_is_read_from_the_cache_without_network(
    hub: Path, tiny_base: Path, tiny_clip: open_clip.CLIP
) -> None:
    put_into_cache(hub, "someone/tiny", tiny_base, CONFIG_FILE, WEIGHTS_FILE)
    assert same_weights(load_clip(find_base(ModelConfig("hf-hub:someone/tiny"))), tiny_clip)


def test_a_tag_is_read_from_the_cache_without_network(hub: Path, tiny_base: Path) -> None:
    # the right file for the tag by name; that it is the tiny model's is noticed when it is loaded
    put_into_cache(hub, "timm/vit_base_patch32_clip_224.openai", tiny_base, WEIGHTS_FILE)
    base = find_base(ModelConfig())
    assert base.weights.name == WEIGHTS_FILE
    assert tuple(base.preprocess["mean"]) == open_clip.OPENAI_DATASET_MEAN
    with pytest.raises(UserError, match="does not fit the model: 120 missing"):
        load_tower(base)


def test_what_is_in_the_cache_is_not_asked_of_the_network(
    hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network a question costs half a minute of retries."""
    put_into_cache(hub, "someone/tiny", tiny_base, CONFIG_FILE, WEIGHTS_FILE)
    monkeypatch.setattr("vit_classify.base.hf_hub_download", lambda *args, **options: pytest.fail("asked the Hub"))
    find_base(ModelConfig("hf-hub:someone/tiny"))


def test_a_repository_that_has_only_a_pickle_is_read_from_it(
    hub: Path, tiny_cfg: dict[str, Any], tiny_clip: open_clip.CLIP, tmp_path: Path
) -> None:
    folder = write_local(tiny_clip.state_dict(), tiny_cfg, tmp_path / "pickled")
    torch.save(tiny_clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    put_into_cache(hub, "someone/tiny", folder, CONFIG_FILE, "open_clip_pytorch_model.bin")
    assert same_weights(load_clip(find_base(ModelConfig("hf-hub:someone/tiny"))), tiny_clip)


def test_an_architecture_takes_a_weights_file(architecture: str, tiny_base: Path, tiny_clip: open_clip.CLIP) -> None:
    base = find_base(ModelConfig(architecture, str(tiny_base / WEIGHTS_FILE)))
    assert same_weights(load_clip(base), tiny_clip)


def test_a_plain_tensor_pickle_is_read_and_loading_leaves_the_random_state_alone(
    architecture: str, tmp_path: Path, tiny_clip: open_clip.CLIP
) -> None:
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny_clip.state_dict().items()}}, tmp_path / "epoch_1.pt")
    before = torch.get_rng_state()
    base = find_base(ModelConfig(architecture, str(tmp_path / "epoch_1.pt"), activation="quick_gelu"))
    assert same_weights(load_clip(base), tiny_clip)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_weights_load_as_float32(tiny_cfg: dict[str, Any], tmp_path: Path) -> None:
    write_local(open_clip.CLIP(**tiny_cfg).half().state_dict(), tiny_cfg, tmp_path)
    tower = load_tower(find_base(ModelConfig(f"local-dir:{tmp_path}")))
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_a_linear_head_needs_no_text_tower_in_the_file(
    tiny_base: Path, tiny_clip: open_clip.CLIP, tmp_path: Path
) -> None:
    shutil.copy(tiny_base / CONFIG_FILE, tmp_path)
    state = load_file(tiny_base / WEIGHTS_FILE)
    save_file({k: v for k, v in state.items() if k.startswith("visual.")}, tmp_path / WEIGHTS_FILE)
    base = find_base(ModelConfig(f"local-dir:{tmp_path}"))
    assert same_weights(load_tower(base), tiny_clip.visual)
    with pytest.raises(UserError, match=r"missing: .*token_embedding|missing: ln_final"):
        load_clip(base)


# -- the activation


@pytest.mark.parametrize("tag", ["openai", "laion400m_e31", "laion400m_e32"])
def test_a_quickgelu_tag_with_a_gelu_architecture_is_refused_before_anything_is_fetched(hub: Path, tag: str) -> None:
    with pytest.raises(UserError, match=r"use model.name=ViT-B-32-quickgelu"):
        find_base(ModelConfig("ViT-B-32", tag))


def test_a_gelu_tag_with_a_quickgelu_architecture_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match=r"use model.name=ViT-B-32$"):
        find_base(ModelConfig("ViT-B-32-quickgelu", "laion2b_s34b_b79k"))


def test_a_file_that_does_not_say_its_activation_needs_it_said(
    architecture: str, tiny_base: Path, tmp_path: Path
) -> None:
    file = undeclared(tiny_base, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"set model\.activation=quick_gelu"):
        find_base(ModelConfig(architecture, str(file)))
    find_base(ModelConfig(architecture, str(file), activation="quick_gelu"))
    with pytest.raises(UserError, match=r"use model.name=Tiny$"):
        find_base(ModelConfig(architecture, str(file), activation="gelu"))


def test_a_files_own_word_on_its_activation_is_checked(architecture: str, tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"use model.name=Tiny-quickgelu"):
        find_base(ModelConfig("Tiny", str(tiny_base / WEIGHTS_FILE)))
    with pytest.raises(UserError, match=r"model.activation=gelu, but"):
        find_base(ModelConfig(architecture, str(tiny_base / WEIGHTS_FILE), activation="gelu"))


@pytest.mark.parametrize(
    ("repository", "remedy"),
    [
        ("timm/vit_base_patch32_clip_224.openai", "use model.name=Tiny-quickgelu"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "use model.name=Tiny$"),
    ],
)
def test_the_place_of_a_file_in_the_hub_cache_tells_its_activation(
    architecture: str, tiny_base: Path, tmp_path: Path, repository: str, remedy: str
) -> None:
    place = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc" / WEIGHTS_FILE
    wrong = "Tiny" if remedy.endswith("quickgelu") else "Tiny-quickgelu"
    with pytest.raises(UserError, match=remedy):
        find_base(ModelConfig(wrong, str(undeclared(tiny_base, place))))


def test_the_config_beside_a_file_tells_its_activation(architecture: str, tiny_base: Path, tmp_path: Path) -> None:
    file = undeclared(tiny_base, tmp_path / WEIGHTS_FILE)
    shutil.copy(tiny_base / CONFIG_FILE, tmp_path)
    find_base(ModelConfig(architecture, str(file)))
    with pytest.raises(UserError, match=r"use model.name=Tiny-quickgelu"):
        find_base(ModelConfig("Tiny", str(file)))


def test_a_folder_whose_config_contradicts_its_weights_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    described = json.loads((tiny_base / CONFIG_FILE).read_text())
    described["model_cfg"]["quick_gelu"] = False
    (tmp_path / CONFIG_FILE).write_text(json.dumps(described))
    shutil.copy(tiny_base / WEIGHTS_FILE, tmp_path)
    with pytest.raises(UserError, match="set quick_gelu=true in the model_cfg"):
        find_base(ModelConfig(f"local-dir:{tmp_path}"))


# -- what is not there


def test_a_missing_hub_entry_gives_one_line_with_what_where_and_how(hub: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_base(ModelConfig())
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "model.weights=openai of ViT-B-32-quickgelu",
        "timm/vit_base_patch32_clip_224.openai",
        str(hub),
        "hf download timm/vit_base_patch32_clip_224.openai open_clip_model.safetensors",
    ):
        assert part in message
    with pytest.raises(UserError, match=r"hf download someone/else open_clip_config.json"):
        find_base(ModelConfig("hf-hub:someone/else"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("ViT-B-32-quikgelu"), r"did you mean ViT-B-32-quickgelu"),
        (ModelConfig("ViT-B-32-quickgelu", "laion400m_e33"), r"did you mean laion400m_e3\d"),
        (ModelConfig("ViT-B-32", "no/such/file.safetensors"), r"no such file"),
        (ModelConfig("ViT-B-32", "nothing.pt"), r"no such file"),
        (ModelConfig("local-dir:/no/such/folder"), r"no /no/such/folder/open_clip_config.json"),
        (ModelConfig("builtin:nothing"), r"model.name=builtin:nothing"),
        (ModelConfig("RN50-quickgelu", "openai"), r"(ResNet|neither in the cache)"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_was_looked_for(hub: Path, config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_base(config)


def test_a_folder_without_weights_or_with_a_broken_config_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_base / CONFIG_FILE, tmp_path)
    with pytest.raises(UserError, match="no weights at"):
        find_base(ModelConfig(f"local-dir:{tmp_path}"))
    for broken in ("{", "[]", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}'):
        (tmp_path / CONFIG_FILE).write_text(broken)
        with pytest.raises(UserError, match="is not JSON with a model_cfg"):
            find_base(ModelConfig(f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    ("vision", "extra", "message"),
    [
        ({"layers": [1, 1, 1, 1]}, {}, "no plain vision transformer"),
        ({"timm_model_name": "vit_tiny_patch16_224"}, {}, "no plain vision transformer"),
        ({"attentional_pool": True}, {}, "no plain vision transformer"),
        ({}, {"colour": "blue"}, "cannot build this model_cfg.*colour"),
    ],
)
def test_a_model_that_cannot_be_adapted_is_refused(
    tiny_base: Path, tmp_path: Path, vision: dict[str, Any], extra: dict[str, Any], message: str
) -> None:
    described = json.loads((tiny_base / CONFIG_FILE).read_text())
    described["model_cfg"]["vision_cfg"].update(vision)
    described["model_cfg"].update(extra)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(described))
    shutil.copy(tiny_base / WEIGHTS_FILE, tmp_path)
    with pytest.raises(UserError, match=message):
        load_tower(find_base(ModelConfig(f"local-dir:{tmp_path}")))


def test_pictures_resized_in_another_way_are_refused(tiny_clip: open_clip.CLIP, tiny_cfg: Any, tmp_path: Path) -> None:
    write_local(tiny_clip.state_dict(), tiny_cfg, tmp_path, {"resize_mode": "squash"})
    with pytest.raises(UserError, match="squash"):
        find_base(ModelConfig(f"local-dir:{tmp_path}"))
