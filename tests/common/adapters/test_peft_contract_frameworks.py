"""Adapters without PEFT's wrapper: in models of transformers and of diffusers, and in two processes."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.adapters import MosgoatConfig, adapter_tensors, balance_loss, build_config
from common.errors import UserError
from tests.common.adapters.contract import METHOD_NAMES, adapt, params, same
from tests.common.adapters.tiny_models import MODELS, shake, tiny

PREFIXES = ("mosgoat_", "upcycled_", "lora_", "hada_", "lokr_", "peanut_")
# PEFT's own methods that break a contract, and why.
NOT_LOADED = {"dora": "transformers' load_adapter leaves DoRA's magnitudes at their start; PeftModel loads them"}


def with_adapter(model: nn.Module, name: str, method: str, adapter: str, seed: int = 2) -> Tensor:
    """Add an adapter that is not at its start through the model's own `add_adapter`; gives its output."""
    torch.manual_seed(seed)
    config = build_config(method, r=8, target_modules=list(MODELS[name].targets))
    model.add_adapter(config, adapter_name=adapter)
    shake(model)
    return MODELS[name].output(model.eval())


def leftovers(model: nn.Module) -> list[str]:
    return [key for key in model.state_dict() if any(prefix in key for prefix in PREFIXES)]


@pytest.mark.parametrize("method", params(METHOD_NAMES, NOT_LOADED))
def test_transformers_adds_switches_saves_loads_and_deletes_an_adapter(method: str, tmp_path: Path) -> None:
    tested = MODELS["clip"]
    model = tiny("clip")
    plain = tested.output(model)
    expected = with_adapter(model, "clip", method, "first")
    assert model.active_adapters() == ["first"]
    assert not torch.equal(expected, plain)
    model.disable_adapters()
    assert torch.equal(tested.output(model), plain)
    model.enable_adapters()
    assert same(tested.output(model), expected, method)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()
    model.delete_adapter("first")
    assert not leftovers(model)
    assert torch.equal(tested.output(model), plain)
    model.load_adapter(str(tmp_path), adapter_name="again")
    assert same(tested.output(model.eval()), expected, method)
    # what transformers saved opens with PEFT
    assert same(tested.output(peft.PeftModel.from_pretrained(tiny("clip"), tmp_path).eval()), expected, method)


@pytest.mark.parametrize("method", ["moslora", "goat", "full_moe"])
def test_a_tensor_that_transformers_did_not_find_is_told_at_the_first_use(method: str, tmp_path: Path) -> None:
    with_adapter(model := tiny("clip"), "clip", method, "first")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    lost = next(key for key in state if "mosgoat_B" in key or "upcycled_router" in key)
    save_file({key: value for key, value in state.items() if key != lost}, file, metadata={"format": "pt"})
    loaded = tiny("clip")
    loaded.load_adapter(str(tmp_path), adapter_name="cut")  # which only logs it
    kind = "upcycled_router" if method == "full_moe" else "mosgoat_B"
    with pytest.raises(UserError, match=rf"layer .*: adapter 'cut' lacks the values of {kind}"):
        MODELS["clip"].output(loaded.eval())


def test_transformers_keeps_two_adapters_apart(tmp_path: Path) -> None:
    tested = MODELS["llava"]
    model = tiny("llava")
    goat = with_adapter(model, "llava", "goat", "goat")
    moslora = with_adapter(model, "llava", "moslora", "moslora")
    assert model.active_adapters() == ["moslora"]
    assert not torch.equal(goat, moslora)
    model.set_adapter("goat")
    assert torch.equal(tested.output(model), goat)
    model.train()
    tested.output(model)
    assert balance_loss(model) > 0
    model.eval().set_adapter("moslora")
    assert balance_loss(model) == 0
    assert torch.equal(tested.output(model), moslora)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["mixer"] == "dense"


def test_a_base_model_with_its_adapter_on_the_hubs_folder_opens_by_from_pretrained(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny("clip").save_pretrained(base)
    model = tiny("clip").from_pretrained(base)
    expected = with_adapter(model, "clip", "goat", "default")
    model.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    # transformers sees the adapter's configuration, opens the base it names and puts the adapter on it
    assert torch.equal(MODELS["clip"].output(type(model).from_pretrained(adapter).eval()), expected)


@pytest.mark.parametrize("method", ["lora", "moslora", "lora_dash", "goat", "hydralora"])
def test_diffusers_adds_scales_switches_and_unloads_an_adapter(method: str) -> None:
    tested = MODELS["sdxl"]
    unet = tiny("sdxl")
    plain = tested.output(unet)
    expected = with_adapter(unet, "sdxl", method, "first")
    assert unet.active_adapters() == ["first"]
    layer = unet.get_submodule(tested.layer)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    base, update = layer.base_layer(x), layer(x) - layer.base_layer(x)
    unet.set_adapters(["first"], [0.5])
    torch.testing.assert_close(layer(x) - base, 0.5 * update, rtol=0, atol=1e-5)
    unet.set_adapters(["first"])
    assert torch.equal(tested.output(unet), expected)
    # a pipeline's `cross_attention_kwargs={"scale": ...}`: scale_layer before the forward, unscale_layer after it
    assert torch.equal(unet(**tested.batch(), cross_attention_kwargs={"scale": 0.0}).sample, plain)
    assert not torch.equal(unet(**tested.batch(), cross_attention_kwargs={"scale": 0.5}).sample, expected)
    torch.testing.assert_close(tested.output(unet), expected, rtol=0, atol=1e-5)
    unet.disable_adapters()
    assert torch.equal(tested.output(unet), plain)
    unet.enable_adapters()
    torch.testing.assert_close(tested.output(unet), expected, rtol=0, atol=1e-5)
    second = with_adapter(unet, "sdxl", method, "second", seed=50)
    assert not torch.equal(second, expected)
    unet.delete_adapters("second")
    unet.set_adapter("first")
    torch.testing.assert_close(tested.output(unet), expected, rtol=0, atol=1e-5)
    unet.unload_lora()
    assert not leftovers(unet)
    assert torch.equal(tested.output(unet), plain)


def test_diffusers_fuses_and_unfuses_an_adapter_exactly() -> None:
    tested = MODELS["sdxl"]
    unet = tiny("sdxl")
    expected = with_adapter(unet, "sdxl", "moslora", "first")
    unet.fuse_lora()
    torch.testing.assert_close(tested.output(unet), expected, rtol=0, atol=1e-5)
    unet.unfuse_lora()
    assert torch.equal(tested.output(unet), expected)
    routed = tiny("sdxl")
    with_adapter(routed, "sdxl", "goat", "first")
    with pytest.raises(UserError, match="cannot be merged"):
        routed.fuse_lora()


@pytest.mark.parametrize("method", ["moslora", "goat", "full_moe"])
def test_diffusers_refuses_a_file_of_ours_and_does_not_take_it_for_a_lora(method: str, tmp_path: Path) -> None:
    unet = tiny("sdxl")
    with_adapter(unet, "sdxl", method, "first")
    unet.save_lora_adapter(tmp_path, adapter_name="first")
    other = tiny("sdxl")
    # the released MoSLoRA's files open here without their mixers, behind a warning
    with pytest.raises(TypeError, match="LoraConfig"):
        other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    assert torch.equal(MODELS["sdxl"].output(other), MODELS["sdxl"].output(tiny("sdxl")))


def test_a_saved_unet_adapter_opens_in_diffusers_through_peft(tmp_path: Path) -> None:
    tested = MODELS["sdxl"]
    model = adapt("sdxl", "goat")
    model.save_pretrained(tmp_path)
    unet = tiny("sdxl")
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, MosgoatConfig)
    unet.add_adapter(config, adapter_name="first")
    missing = peft.set_peft_model_state_dict(
        unet, peft.utils.load_peft_weights(str(tmp_path)), adapter_name="first"
    ).unexpected_keys
    assert not missing
    assert torch.equal(tested.output(unet.eval()), tested.output(model))


def _in_each_process(rank: int, folder: str, methods: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for method in methods:
        torch.manual_seed(rank)  # another start in each process: DDP has to level it, frozen parts included
        config = build_config(method, r=8, target_modules=["fc1", "fc2"])
        model = peft.get_peft_model(tiny("mlp"), config)
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(2):
            optimizer.zero_grad()
            output = wrapped(**MODELS["mlp"].batch(seed=10 * step + rank))
            (output.square().mean() + balance_loss(model)).backward()
            optimizer.step()
        torch.save(adapter_tensors(model), f"{folder}/{method}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_equal_adapters(tmp_path: Path) -> None:
    # one of each kind of start and of frozen part; goat_random draws its segments
    methods = ["moslora", "lora_fa", "goat_random", "hydralora", "adamole", "full_moe"]
    torch.multiprocessing.spawn(_in_each_process, (str(tmp_path), methods), nprocs=2)
    for method in methods:
        first, second = (torch.load(tmp_path / f"{method}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (method, key)
