"""What a careless user does: odd dtypes and shapes, tied weights, wrong targets, two methods at once."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from common.adapters import METHODS, attach, balance_loss, build_config
from common.config import AdapterConfig
from common.errors import UserError
from tests.common.adapters.contract import METHOD_NAMES, OURS, adapt, same
from tests.common.adapters.tiny_models import MODELS, Mlp, shake, tiny

X = MODELS["mlp"].batch()["x"]  # (3, 5, 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
@pytest.mark.parametrize("method", OURS)
def test_odd_dtypes_of_the_base_work(method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    base = tiny("mlp").to(dtype)
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["fc1", "fc2"]))
    shake(model)
    y = model.train()(X.to(dtype))
    assert y.dtype == dtype
    (y.float().square().mean() + balance_loss(model)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)
    exact = copy.deepcopy(model).double().eval()
    # on average, for a rounded token near a tie may be routed elsewhere; float16 keeps 11 bits
    assert (model.eval()(X.to(dtype)).double() - exact(X.double())).abs().mean() < 2e-3


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("method", OURS)
def test_a_model_cast_with_its_adapter_still_computes(method: str, cast: str) -> None:
    model = adapt("mlp", method)
    expected = model(X)
    getattr(model, cast)()
    dtype = next(model.parameters()).dtype
    y = model(X.to(dtype))
    assert y.dtype == dtype
    assert (y.float() - expected).abs().mean() < 0.02 * expected.abs().mean()  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("method", OURS)
def test_inputs_of_any_shape_and_layout_are_taken(method: str) -> None:
    model = adapt("mlp", method)
    expected = model(X)
    transposed = X.transpose(0, 1)
    # float32: as many sums, in another order where the batch has another size
    for x, y in (
        (X[0, 0], expected[0, 0]),
        (X[None], expected[None]),
        (transposed, expected.transpose(0, 1)),
        (X[:1].expand(4, 5, 24), expected[:1].expand(4, 5, 20)),
        (X[:, ::2], expected[:, ::2]),
    ):
        torch.testing.assert_close(model(x), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", OURS)
def test_an_empty_batch_gives_an_empty_output_and_no_nan(method: str) -> None:
    model = adapt("mlp", method).train()
    y = model(torch.zeros(0, 5, 24))
    assert y.shape == (0, 5, 20)
    (y.sum() + balance_loss(model)).backward()
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


@pytest.mark.parametrize("method", OURS)
def test_inference_mode_computes_the_same_and_leaves_nothing_behind(method: str) -> None:
    model = adapt("mlp", method)
    expected = model(X)
    with torch.inference_mode():
        assert same(model(X), expected, method)
        model.train()(X)
    (model(X).sum() + balance_loss(model)).backward()  # no inference tensor is left on the layers
    copy.deepcopy(model)


@pytest.mark.parametrize("method", [name for name in OURS if name != "full_moe"])  # its split depends on the data
def test_shapes_can_be_computed_on_the_meta_device(method: str) -> None:
    model = adapt("mlp", method).to("meta")
    assert model(X.to("meta")).shape == (3, 5, 20)


@pytest.mark.parametrize("method", ["moslora", "lora_dash", "kasa"])
def test_merging_into_a_weight_that_another_layer_shares_is_an_error(method: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    words = torch.arange(6)[None]
    plain, embeddings = base(words).logits, base.get_input_embeddings().weight.clone()
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["lm_head"]))
    shake(model)
    assert not torch.equal(model(words).logits, plain)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=r"layer lm_head shares its weight with model.embed_tokens, which merging"):
            merge()
    assert torch.equal(base.get_input_embeddings().weight, embeddings)
    with model.disable_adapter():
        assert torch.equal(model(words).logits, plain)


def test_a_transposed_linear_layer_is_an_error() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16))
    for method in ("lora", "moslora", "goat"):
        with pytest.raises(UserError, match=r"attn\.c_attn is a Conv1D; adapters are for linear layers only"):
            attach(base, AdapterConfig(method=method), ["c_attn"])


@pytest.mark.parametrize("name", ["clip", "llava", "sdxl"])
def test_a_target_that_matches_nothing_lists_near_names(name: str) -> None:
    wrong = {"clip": "q_prj", "llava": "down_prj", "sdxl": "toq"}[name]
    near = {"clip": "q_proj", "llava": "down_proj", "sdxl": "to_q"}[name]
    for method in ("lora", "moslora", "goat", "full_moe"):
        with pytest.raises(UserError, match=rf"target_modules: '{wrong}' matches no layer; did you mean .*{near}"):
            attach(tiny(name), AdapterConfig(method=method), [*MODELS[name].targets, wrong])


@pytest.mark.parametrize("method", [name for name in METHOD_NAMES if METHODS[name].ours])
def test_one_adapter_per_sample_is_refused_rather_than_ignored(method: str) -> None:
    model = adapt("mlp", method)
    model.add_adapter("other", build_config(method, r=8, target_modules=["fc1"]))
    with pytest.raises(UserError, match=r"cannot give every sample its own adapter; choose one .* set_adapter"):
        model(X, adapter_names=["default", "other", "__base__"])


@pytest.mark.parametrize(
    ("first", "second"), [("moslora", "goat_plus"), ("lora_fa", "hydralora"), ("kasa", "adamole"), ("goat", "goat")]
)
def test_two_active_adapters_add_their_updates_and_are_saved_apart(first: str, second: str, tmp_path: Path) -> None:
    model = adapt("mlp", first)
    torch.manual_seed(50)
    model.add_adapter("other", build_config(second, r=16, target_modules=["fc1"]))
    model.set_adapter("other")
    shake(model)
    layer = model.base_model.model.fc1
    base, updates = layer.base_layer(X), []
    for name in ("default", "other"):
        model.set_adapter(name)
        updates.append(layer(X) - base)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(layer(X) - base, updates[0] + updates[1], rtol=0, atol=1e-5)
    (model.train()(X).sum() + balance_loss(model)).backward()
    frozen = {"lora_fa": ("fc1.mosgoat_A.default", "fc2.mosgoat_A.default")}.get(first, ())
    for key, p in model.named_parameters():
        if "base_layer" not in key and not key.endswith(frozen):
            assert p.grad is not None, key
    expected = model.eval()(X)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny("mlp"), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    loaded.base_model.set_adapter(["default", "other"])
    assert torch.equal(loaded.eval()(X), expected)


@pytest.mark.parametrize("method", [name for name in OURS if METHODS[name].mergeable])
def test_unmerging_follows_a_model_that_was_cast_or_moved_meanwhile(method: str) -> None:
    model = adapt("mlp", method)
    model.merge_adapter()
    model.to(torch.bfloat16)  # stands for .cuda() too: the weight kept for unmerging is no parameter that moves along
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.fc1.base_layer.weight, tiny("mlp").bfloat16().fc1.weight)


def test_a_linear_layer_of_a_derived_class_keeps_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(1)
    net = Mlp()
    net.fc1 = Doubled(24, 40)
    expected = net(X)
    model = peft.get_peft_model(net, build_config("goat", r=8, target_modules=["fc1"]))
    shake(model)
    assert not torch.equal(model.eval()(X), expected)
    with model.disable_adapter():
        assert torch.equal(model(X), expected)
