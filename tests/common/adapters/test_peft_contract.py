"""What PEFT's users expect of a tuner, for every method of ours."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from common.adapters import (
    METHODS,
    MosgoatConfig,
    adapter_tensors,
    attach,
    balance_loss,
    build_config,
)
from common.adapters.layer import MosgoatLinear
from common.config import AdapterConfig
from common.errors import UserError

METHOD_NAMES = tuple(name for name, method in METHODS.items() if method.build)
OURS = tuple(name for name in METHOD_NAMES if METHODS[name].ours)
Adapted = Callable[..., peft.PeftModel]
MakeMlp = Callable[[], nn.Module]


def train_a_little(model: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model.train()(x).square().mean() + balance_loss(model)).backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_base_weight_is_never_modified(method: str, mlp: MakeMlp, adapted: Adapted, x: torch.Tensor) -> None:
    model = adapted(method, moved=False, dropout=0.1)
    train_a_little(model, x)
    base = {k.replace("base_layer.", ""): v for k, v in model.base_model.model.state_dict().items()}
    for name, original in mlp().state_dict().items():
        assert torch.equal(base[name], original), name


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_only_adapter_and_saved_modules_train_and_all_of_them_do(method: str, mlp: MakeMlp, x: torch.Tensor) -> None:
    config = build_config(method, r=8, target_modules=["fc1"], modules_to_save=["fc2"])
    model = peft.get_peft_model(mlp(), config)
    before = copy.deepcopy(model.state_dict())
    train_a_little(model, x)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed == trained
    assert all("fc2.modules_to_save" in n or ("fc1" in n and "base_layer" not in n) for n in trained)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_disabled_adapter_gives_the_base_models_output_bit_by_bit(
    method: str, mlp: MakeMlp, adapted: Adapted, x: torch.Tensor
) -> None:
    model = adapted(method).eval()
    assert not torch.equal(model(x), mlp()(x))
    with model.disable_adapter():
        assert torch.equal(model(x), mlp()(x))
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", OURS)
def test_adapters_side_by_side_do_not_touch_each_other(method: str, adapted: Adapted, x: torch.Tensor) -> None:
    model = adapted(method).eval()
    first = model(x)
    torch.manual_seed(50)
    # a second adapter of another kind, rank and set of layers
    other = build_config("moslora" if method != "moslora" else "goat", r=16, target_modules=["fc2"])
    model.add_adapter("other", other)
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.endswith(".other") for name in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".other"):
                p.add_(0.1)
    assert not torch.equal(model(x), first)
    model.set_adapter("default")
    assert torch.equal(model(x), first)
    model.delete_adapter("other")
    assert not [name for name in model.state_dict() if "other" in name]
    assert torch.equal(model(x), first)


def test_two_active_adapters_add_their_updates(adapted: Adapted, x: torch.Tensor) -> None:
    model = adapted("moslora").eval()
    model.add_adapter("other", build_config("goat_plus", r=8, target_modules=["fc1"]))
    layer = model.base_model.model.fc1
    base = layer.base_layer(x)
    updates = []
    for name in ("default", "other"):
        model.base_model.set_adapter(name)
        updates.append(layer(x) - base)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(x) - base, updates[0] + updates[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", OURS)
def test_copies_and_pickles_give_the_same_output(method: str, adapted: Adapted, x: torch.Tensor) -> None:
    model = adapted(method).eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        with torch.no_grad():
            twin.base_model.model.fc1.mosgoat_A["default"].zero_()
        assert not torch.equal(twin(x), model(x))


_FRESH = """
import sys, torch, peft
from torch import nn
import common.adapters
from common.adapters import spec, start

def forbidden(*_, **__):
    raise AssertionError("a start value was computed while loading")

for module, name in ((start, "svd_segments"), (spec, "svd_start"), (torch.linalg, "eigh"), (torch.linalg, "svd")):
    assert hasattr(module, name)
    setattr(module, name, forbidden)
folder = sys.argv[1]
for method in sys.argv[2:]:
    for low_cpu_mem_usage in (False, True):
        base = torch.nn.Sequential()
        base.fc1, base.act, base.fc2 = nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 20)
        saved = torch.load(f"{folder}/{method}.pt", weights_only=True)
        base.load_state_dict(saved["base"])
        model = peft.PeftModel.from_pretrained(base, f"{folder}/{method}", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(model.eval()(saved["x"]), saved["y"]), method
print("all equal")
"""


@pytest.mark.slow
def test_saved_adapters_open_in_a_fresh_process_without_any_decomposition(
    mlp: MakeMlp, adapted: Adapted, x: torch.Tensor, tmp_path: Path
) -> None:
    for method in METHOD_NAMES:
        model = adapted(method).eval()
        model.save_pretrained(tmp_path / method)
        torch.save({"base": mlp().state_dict(), "x": x, "y": model(x).detach()}, tmp_path / f"{method}.pt")
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:peft", "-c", _FRESH, str(tmp_path), *METHOD_NAMES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "missing adapter keys" not in run.stderr
    assert run.stdout.strip() == "all equal"


def test_training_goes_on_from_a_loaded_adapter(
    adapted: Adapted, mlp: MakeMlp, x: torch.Tensor, tmp_path: Path
) -> None:
    model = adapted("goat")
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(mlp(), tmp_path, is_trainable=True)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    train_a_little(model, x)
    train_a_little(loaded, x)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_a_saved_configuration_without_its_weights_gives_nan_not_a_wrong_start(
    adapted: Adapted, mlp: MakeMlp, x: torch.Tensor, tmp_path: Path
) -> None:
    adapted("goat").save_pretrained(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, MosgoatConfig)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MOSGOAT"
    assert peft.get_peft_model(mlp(), config)(x).isnan().all()
    config.weights_saved = False
    assert peft.get_peft_model(mlp(), config)(x).isfinite().all()


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if METHODS[m].mergeable])
def test_merging_is_exact_and_unmerging_restores_every_bit(
    method: str, mlp: MakeMlp, adapted: Adapted, x: torch.Tensor
) -> None:
    model = adapted(method).eval()
    expected = model(x)
    base = mlp().state_dict()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected) or method == "lora"  # PEFT's own subtracts and leaves roundings
    if method != "lora":
        assert torch.equal(model.base_model.model.fc1.base_layer.weight, base["fc1.weight"])
    merged = model.merge_and_unload()
    assert type(merged.fc1) is nn.Linear
    torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("segments", [1, 4])
def test_a_residual_merges_exactly_too(segments: int, mlp: MakeMlp, x: torch.Tensor) -> None:
    config = MosgoatConfig(mixer="identity", init="spread", num_experts=segments, target_modules=["fc1", "fc2"])
    model = peft.get_peft_model(mlp(), config).eval()
    torch.testing.assert_close(model(x), mlp()(x), rtol=0, atol=1e-6)  # the residual takes the start back
    with torch.no_grad():
        model.base_model.model.fc1.mosgoat_A["default"].mul_(1.5)
    expected = model(x)
    assert (expected - mlp()(x)).abs().max() > 0.01
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=0, atol=1e-6)


def test_unmerging_a_bfloat16_base_restores_every_bit(mlp: MakeMlp, x: torch.Tensor) -> None:
    config = build_config("moslora", r=8, target_modules=["fc1"])
    model = peft.get_peft_model(mlp().to(torch.bfloat16), config)
    nn.init.normal_(model.base_model.model.fc1.mosgoat_B["default"])
    before = model.base_model.model.fc1.base_layer.weight.clone()
    model.merge_adapter()
    assert not torch.equal(model.base_model.model.fc1.base_layer.weight, before)
    with model.disable_adapter():
        assert torch.equal(model(x.bfloat16()), mlp().to(torch.bfloat16)(x.bfloat16()))
    assert torch.equal(model.base_model.model.fc1.base_layer.weight, before)


def test_unmerging_follows_a_model_that_was_cast_or_moved_meanwhile(mlp: MakeMlp, x: torch.Tensor) -> None:
    model = peft.get_peft_model(mlp(), build_config("moslora", r=8, target_modules=["fc1"]))
    nn.init.normal_(model.base_model.model.fc1.mosgoat_B["default"])
    model.merge_adapter()
    model.to(torch.bfloat16)  # stands for .cuda() too: the weight kept for unmerging is no parameter that moves along
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.fc1.base_layer.weight, mlp().to(torch.bfloat16).fc1.weight)
    with model.disable_adapter():
        assert torch.equal(model(x.bfloat16()), mlp().to(torch.bfloat16)(x.bfloat16()))


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_a_4_bit_base_trains_stays_as_it_is_and_is_not_merged_into(method: str, storage: torch.dtype) -> None:
    nf4 = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    layer = nf4.Linear4bit(64, 96, compute_dtype=torch.bfloat16, quant_type="nf4", quant_storage=storage)
    base = nn.Sequential(layer.to("cpu"))
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    expected = base(x)
    packed = layer.weight.detach().clone().view(torch.uint8)
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["0"]))
    (model(x).float().square().sum() + balance_loss(model)).backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert torch.equal(layer.weight.detach().view(torch.uint8), packed)  # as bytes: packed bits can spell NaN
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    if method == "moslora":
        with pytest.raises(UserError, match="quantised weight"):
            model.merge_adapter()


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if METHODS[m].routed])
def test_merging_a_routed_adapter_is_an_error_that_says_why(method: str, adapted: Adapted, mlp: MakeMlp) -> None:
    model = adapted(method)
    with pytest.raises(UserError, match=r"routes every token to 2 of 8 experts.*cannot be merged.*keep it as"):
        model.merge_adapter()
    with pytest.raises(UserError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(model.base_model.model.fc1.base_layer.weight, mlp().fc1.weight)


@pytest.mark.parametrize("method", OURS)
def test_bfloat16_base_and_autocast_keep_float32_adapter_weights(method: str, mlp: MakeMlp, x: torch.Tensor) -> None:
    model = mlp().to(torch.bfloat16)
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model, build_config(method, r=8, target_modules=["fc1", "fc2"], dropout=0.1))
    assert all(t.dtype == torch.float32 for t in adapter_tensors(wrapped).values())
    exact = copy.deepcopy(wrapped).float().eval()
    train_a_little(wrapped, x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = wrapped.train()(x)
        assert y.dtype == torch.bfloat16
        (y.float().square().mean() + balance_loss(wrapped)).backward()
    grads = [p.grad for p in wrapped.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    exact.load_state_dict({k: v.float() for k, v in wrapped.state_dict().items()})
    with torch.autocast("cpu", torch.bfloat16):
        difference = wrapped.eval()(x).float() - exact(x)
    assert difference.abs().max() < 0.05 * exact(x).abs().max()  # bfloat16 keeps 8 bits


def test_transformers_own_adapter_calls_work(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    model = CLIPVisionModel(config).eval()
    pixels = torch.randn(2, 3, 8, 8)
    plain = model(pixels).last_hidden_state
    targets = ["q_proj", "v_proj", "fc1"]
    model.add_adapter(build_config("goat", r=8, target_modules=targets), adapter_name="goat")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "mosgoat_A" in name:
                p.add_(0.1)
    adapted_output = model(pixels).last_hidden_state
    assert not torch.equal(adapted_output, plain)
    model.save_pretrained(tmp_path)
    model.delete_adapter("goat")
    assert not [name for name in model.state_dict() if "mosgoat" in name]
    model.load_adapter(str(tmp_path), adapter_name="again")
    assert torch.equal(model.eval()(pixels).last_hidden_state, adapted_output)


def test_attach_makes_a_peft_model_of_a_recipe(mlp: MakeMlp, x: torch.Tensor) -> None:
    recipe = AdapterConfig(method="goat", r=8, num_experts=4, top_k=1, rho=5.0, dropout=0.25, balance_coef=0.5)
    model = attach(mlp(), recipe, ("fc1",))
    config = model.peft_config["default"]
    assert (config.num_experts, config.top_k, config.rho, config.dropout) == (4, 1, 5.0, 0.25)
    assert config.balance_weight == 0.5
    assert [n for n, m in model.named_modules() if isinstance(m, MosgoatLinear)] == ["base_model.model.fc1"]
    model(x)
    assert balance_loss(model) > 0
