"""SDXL adapters in diffusers' and kohya's naming, opened by stock diffusers."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from common.adapters import METHODS, build_config
from common.adapters.export_sdxl import FILE_NAME, SdxlNaming, export_sdxl, kohya_name, sgm_name, text_layer_name
from common.config import OPTIONS
from common.errors import UserError
from tests.common.adapters import sdxl
from tests.common.adapters.tiny_models import shake

EXPORTABLE = [name for name, method in METHODS.items() if method.exportable]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
Report = Callable[[], list[str]]


@pytest.fixture
def report() -> Iterator[Report]:
    """What diffusers, transformers and PEFT have to say about a file while it is loaded."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: lines + [str(warning.message) for warning in caught]
    for logger in loggers:
        logger.removeHandler(handler)


def adapted(pipe: Any, method: str, components: tuple[str, ...], r: int = 4, **overrides: Any) -> dict[str, nn.Module]:
    """Inject an adapter that is not at its start into components of a pipeline."""
    if "num_experts" in OPTIONS[method]:
        overrides.setdefault("num_experts", 2)
    torch.manual_seed(2)
    for name in components:
        targets = sdxl.ATTENTION if name == "unet" else TEXT
        config = build_config(method, **{"r": r, "alpha": 6.0, "target_modules": targets, **overrides})
        getattr(pipe, name).add_adapter(config)
        shake(getattr(pipe, name))
    return {name: getattr(pipe, name) for name in components}


def assert_loads(folder: Path, live: Any, components: tuple[str, ...], report: Report) -> None:
    """Stock `load_lora_weights` gives the live adapter's outputs, and has nothing to report."""
    stock = sdxl.pipeline()
    before, expected = sdxl.outputs(stock, components), sdxl.outputs(live, components)
    stock.load_lora_weights(str(folder))
    missing = {"unet", "text_encoder", "text_encoder_2"} - set(components)
    # an absent text encoder is announced, as "safe to ignore"
    told = [line for line in report() if not ("No LoRA keys associated" in line and missing)]
    assert told == []
    found = sdxl.outputs(stock, components)
    for name in components:
        difference = (found[name] - expected[name]).abs().max()
        scale = expected[name].abs().max()
        assert (expected[name] - before[name]).abs().max() > 0.002 * scale, f"the adapter of {name} does nothing"
        assert difference <= 2e-5 * scale, name  # float32 products in another order, through some forty layers
        saved = [key for key in load_file(folder / FILE_NAME) if key.endswith(("lora_A.weight", "lora_down.weight"))]
    tuned = [n for c in components for n, m in getattr(stock, c).named_modules() if n.endswith("lora_A.default_0")]
    assert len(tuned) == len(saved)


# In kohya's naming only the names are others, so that one method of each kind will do.
CASES = [(method, "diffusers") for method in EXPORTABLE] + [
    (method, "kohya") for method in ("lora", "moslora", "pissa")
]


@pytest.mark.parametrize(("method", "naming"), CASES)
def test_stock_diffusers_gives_the_same_output(method: str, naming: SdxlNaming, tmp_path: Path, report: Report) -> None:
    live = sdxl.pipeline()
    export_sdxl(adapted(live, method, ("unet",)), tmp_path, naming)
    assert_loads(tmp_path, live, ("unet",), report)


def test_dora_is_refused_where_diffusers_would_drop_it(tmp_path: Path) -> None:
    parts = adapted(sdxl.pipeline(), "dora", ("unet",))
    with pytest.raises(UserError, match=r"dropped by diffusers.*--format diffusers"):
        export_sdxl(parts, tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("method", ["moslora", "lora"])
def test_text_encoders_go_along(method: str, naming: SdxlNaming, tmp_path: Path, report: Report) -> None:
    live = sdxl.pipeline()
    everything = ("unet", "text_encoder", "text_encoder_2")
    export_sdxl(adapted(live, method, everything), tmp_path, naming)
    assert_loads(tmp_path, live, everything, report)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_every_linear_layer_of_the_unet_has_a_name(naming: SdxlNaming, tmp_path: Path, report: Report) -> None:
    live = sdxl.pipeline()
    linear = [name for name, module in live.unet.named_modules() if isinstance(module, nn.Linear)]
    assert any("ff.net" in name for name in linear)
    export_sdxl(adapted(live, "moslora", ("unet",), target_modules=linear), tmp_path, naming)
    assert_loads(tmp_path, live, ("unet",), report)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_ranks_and_scalings_that_differ_by_layer_survive(naming: SdxlNaming, tmp_path: Path, report: Report) -> None:
    live = sdxl.pipeline()
    parts = adapted(live, "moslora", ("unet",), scaling="theory", rank_pattern={"to_q": 2, "mid_block.*to_v": 3})
    export_sdxl(parts, tmp_path, naming)
    assert_loads(tmp_path, live, ("unet",), report)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_a_model_wrapped_by_peft_gives_the_same_file_as_an_injected_one(naming: SdxlNaming, tmp_path: Path) -> None:
    config = build_config("moslora", r=4, target_modules=sdxl.ATTENTION)
    files = []
    for wrapped in (True, False):
        unet = sdxl.pipeline().unet
        torch.manual_seed(2)
        model = peft.get_peft_model(unet, config) if wrapped else unet
        if not wrapped:
            unet.add_adapter(config)
        shake(model)
        files.append(load_file(export_sdxl({"unet": model}, tmp_path / str(wrapped), naming)))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def real_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**sdxl.REAL_UNET)


@pytest.mark.slow  # building the real architecture, even without weights
def test_the_attention_of_the_real_unet_has_560_distinct_names_that_lead_back() -> None:
    from types import SimpleNamespace

    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils import convert_unet_state_dict_to_peft

    names = [
        n for n, m in real_unet().named_modules() if n.endswith(tuple(sdxl.ATTENTION)) and isinstance(m, nn.Linear)
    ]
    assert len(names) == 560
    keys = {name: kohya_name("unet", name) for name in names}
    assert len(set(keys.values())) == 560
    # diffusers' own way back, with a number in each tensor by which to know it again
    state = {}
    for number, key in enumerate(keys.values()):
        state |= {f"{key}.lora_down.weight": torch.tensor(number), f"{key}.lora_up.weight": torch.tensor(number)}
        state[f"{key}.alpha"] = torch.tensor(4.0)
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
    back, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    found = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in back.items()})
    assert {key.removesuffix(".lora_A.weight"): int(v) for key, v in found.items() if "lora_A" in key} == {
        name: number for number, name in enumerate(names)
    }


# from files that kohya's scripts have written for SDXL
KNOWN = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    ),
    "down_blocks.1.attentions.1.proj_in": "lora_unet_input_blocks_5_1_proj_in",
    "down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k": (
        "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k"
    ),
    "down_blocks.2.attentions.1.transformer_blocks.3.ff.net.0.proj": (
        "lora_unet_input_blocks_8_1_transformer_blocks_3_ff_net_0_proj"
    ),
    "mid_block.attentions.0.transformer_blocks.5.attn1.to_out.0": (
        "lora_unet_middle_block_1_transformer_blocks_5_attn1_to_out_0"
    ),
    "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2": (
        "lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_2"
    ),
    "up_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v": (
        "lora_unet_output_blocks_3_1_transformer_blocks_1_attn2_to_v"
    ),
    "up_blocks.1.attentions.2.proj_out": "lora_unet_output_blocks_5_1_proj_out",
    "down_blocks.0.resnets.1.time_emb_proj": "lora_unet_input_blocks_2_0_emb_layers_1",
    "mid_block.resnets.1.time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "time_embedding.linear_2": "lora_unet_time_embed_2",
}


@pytest.mark.parametrize("name", KNOWN)
def test_names_are_those_of_kohyas_files(name: str) -> None:
    assert kohya_name("unet", name) == KNOWN[name]


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_are_named_alike_whether_or_not_transformers_has_the_prefix(prefix: str) -> None:
    name = f"{prefix}encoder.layers.3.self_attn.q_proj"
    assert text_layer_name(name) == "text_model.encoder.layers.3.self_attn.q_proj"
    assert kohya_name("text_encoder", name) == "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    assert kohya_name("text_encoder_2", name) == "lora_te2_text_model_encoder_layers_3_self_attn_q_proj"


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0.conv1", "conv_in", "up_blocks.0.upsamplers.0.conv"])
def test_a_layer_without_a_name_there_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=r"has no name in kohya's files"):
        sgm_name(name)


def test_a_text_layer_without_a_name_is_an_error() -> None:
    with pytest.raises(UserError, match=r"layer text_projection of a text encoder"):
        text_layer_name("text_projection")


def test_a_kohya_file_names_the_model_it_is_for(tmp_path: Path) -> None:
    export_sdxl(adapted(sdxl.pipeline(), "moslora", ("unet",)), tmp_path, "kohya")
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
        assert file.metadata()["ss_network_dim"] == "4"


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_a_routed_adapter_is_refused_with_the_reason(naming: SdxlNaming, tmp_path: Path) -> None:
    parts = adapted(sdxl.pipeline(), "goat", ("unet",), num_experts=2)
    with pytest.raises(UserError, match=r"routes every token.*no single weight.*moslora or lora instead"):
        export_sdxl(parts, tmp_path / "out", naming)
    assert not (tmp_path / "out").exists()


def test_modules_trained_whole_are_refused(tmp_path: Path) -> None:
    config = build_config("moslora", r=4, target_modules=sdxl.ATTENTION, modules_to_save=["conv_out"])
    model = peft.get_peft_model(sdxl.pipeline().unet, config)
    with pytest.raises(UserError, match=r"modules_to_save.*--format peft"):
        export_sdxl({"unet": model}, tmp_path, "diffusers")
