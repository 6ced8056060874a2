"""Which models can be counted, and what is said of those that cannot."""

import sys
from pathlib import Path

import pytest

from common.config import AdapterConfig
from common.counting import MODELS, count, find_model
from common.counting.models import CLIP_LAYERS, LLAMA_LAYERS, UNET_LAYERS
from common.errors import UserError
from tests.common.counting.conftest import CLIP, LLAMA, UNET, write_config


@pytest.mark.parametrize(("name", "targets"), [("llama", LLAMA_LAYERS), ("clip", CLIP_LAYERS), ("unet", UNET_LAYERS)])
def test_a_folder_with_a_config_is_a_model_with_the_papers_layers(
    name: str, targets: tuple[str, ...], folders: dict[str, str]
) -> None:
    architecture = find_model(folders[name])
    assert architecture.targets == targets
    assert {parameter.device.type for parameter in architecture.make().parameters()} == {"meta"}


def test_a_model_of_several_towers_needs_targets_and_has_no_flops(folders: dict[str, str]) -> None:
    architecture = find_model(folders["llava"])
    with pytest.raises(UserError, match=r"--targets is needed for LlavaForConditionalGeneration .* q_proj"):
        count(architecture, AdapterConfig())
    counted = count(architecture, AdapterConfig(target_modules=["q_proj"]))
    assert counted.flops is None
    assert sum(group.layers for group in counted.groups) == 4  # two of the tower, two of the language model


def test_a_tied_weight_is_counted_and_saved_once(tmp_path: Path) -> None:
    folder = write_config(tmp_path, {**LLAMA, "tie_word_embeddings": True})
    tied = count(find_model(folder), AdapterConfig(method="full"), with_flops=False)
    assert tied.adapter_bytes == 4 * tied.base


def test_an_unknown_name_names_near_ones() -> None:
    with pytest.raises(UserError, match=r"--model=lama-3-8b is neither a known model nor a folder .* llama-3-8b"):
        find_model("lama-3-8b")


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_config_that_is_no_object_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json (cannot be read as JSON|holds no object)"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "internlm2", "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}},
        {"model_type": "llama", "architectures": ["MyLlama"]},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "wide"},
        {**CLIP, "hidden_size": 33},
        {"_class_name": "MyUNet"},
        {"_class_name": "DDIMScheduler"},
        {**UNET, "block_out_channels": [8, 16]},
    ],
)
def test_a_config_without_a_model_of_the_libraries_is_an_error(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        find_model(write_config(tmp_path, config))


def test_a_missing_diffusers_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        MODELS["sdxl-unet"].make()
