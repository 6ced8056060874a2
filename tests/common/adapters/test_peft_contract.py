"""What PEFT's users expect of a tuner, for every method: training, switching, several adapters, copies, merging.

The cases are chosen in `contract.py`: every method on the MLP, one of each family on tiny CLIP, LLaVA and SDXL.
Exceptions are PEFT's own methods only, each with its reason.
"""

import copy
import pickle
from pathlib import Path

import peft
import pytest
import torch

from common.adapters import METHODS, MosgoatConfig, adapter_tensors, attach, balance_loss, build_config
from common.adapters.layer import MosgoatLinear
from common.config import AdapterConfig
from common.errors import UserError
from tests.common.adapters.contract import OURS, adapt, assert_base_untouched, cases, same, train
from tests.common.adapters.tiny_models import MODELS, Mlp, shake, tiny

# PEFT's own methods that break a contract, and why.
ONE_TRAINABLE = {"adalora": "PEFT's AdaLoRA allows one adapter that is trained"}
SUBTRACTS = dict.fromkeys(
    ("lora", "rslora", "dora", "adalora", "loha", "lokr"),
    "PEFT unmerges by subtracting (DoRA: by dividing too), which leaves roundings in the weight",
)


@pytest.mark.parametrize(("name", "method"), cases())
def test_base_weight_is_never_modified(name: str, method: str, tmp_path: Path) -> None:
    model = adapt(name, method, moved=False, dropout=0.1)
    assert_base_untouched(model, name)
    train(model, name)
    with model.disable_adapter():
        MODELS[name].output(model.eval())
    model.save_pretrained(tmp_path)
    assert_base_untouched(model, name)
    plain = model.unload()
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in tiny(name).state_dict().items()
    }
    assert_base_untouched(plain, name)


@pytest.mark.parametrize(("name", "method"), cases())
def test_only_adapter_and_saved_modules_train_and_all_of_them_do(name: str, method: str) -> None:
    tested = MODELS[name]
    targets = [target for target in tested.targets if target != tested.whole]
    model = adapt(name, method, moved=False, target_modules=targets, modules_to_save=[tested.whole])
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train(model, name)
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert changed == trained
    saved = {key for key in trained if f"{tested.whole}.modules_to_save.default." in key}
    assert saved
    assert trained - saved <= set(adapter_tensors(model))


@pytest.mark.parametrize(("name", "method"), cases())
def test_a_disabled_adapter_gives_the_base_models_output_bit_by_bit(name: str, method: str) -> None:
    model = adapt(name, method)
    plain = MODELS[name].output(tiny(name))
    adapted = MODELS[name].output(model)
    assert not torch.equal(adapted, plain)
    with model.disable_adapter():
        assert torch.equal(MODELS[name].output(model), plain)
        assert not any(p.requires_grad for p in model.parameters())
    assert same(MODELS[name].output(model), adapted, method)


@pytest.mark.parametrize(("name", "method"), cases(broken=ONE_TRAINABLE))
def test_adapters_side_by_side_do_not_touch_each_other(name: str, method: str) -> None:
    tested = MODELS[name]
    model = adapt(name, method)
    first = tested.output(model)
    torch.manual_seed(50)
    # another rank and set of layers, and where our tuner allows it another method
    other = method
    if isinstance(model.peft_config["default"], MosgoatConfig):
        other = "moslora" if METHODS[method].routed else "goat"
    model.add_adapter("other", build_config(other, r=16, target_modules=[tested.targets[-1]]))
    assert same(tested.output(model), first, method)
    model.set_adapter("other")
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("other" in key for key in trained)
    shake(model)
    assert not torch.equal(tested.output(model.eval()), first)
    model.set_adapter("default")
    assert same(tested.output(model), first, method)
    assert not [key for key, p in model.named_parameters() if p.requires_grad and "other" in key]
    model.delete_adapter("other")
    assert not [key for key in model.state_dict() if "other" in key]
    assert same(tested.output(model), first, method)
    assert_base_untouched(model, name)


@pytest.mark.parametrize(("name", "method"), cases())
def test_copies_and_pickles_give_the_same_output_and_are_independent(name: str, method: str) -> None:
    tested = MODELS[name]
    model = adapt(name, method, moved=False)
    train(model, name, steps=1)  # what a backward leaves behind must not stand in the way
    expected = tested.output(model.eval())
    tested.output(model.train())
    twins = [copy.deepcopy(model)]
    if name != "llava":  # transformers leaves a hook on it that cannot be pickled, adapted or not
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        assert same(tested.output(twin.eval()), expected, method)
        shake(twin)
        assert not torch.equal(tested.output(twin), expected)
    assert same(tested.output(model.eval()), expected, method)


@pytest.mark.parametrize(("name", "method"), cases(lambda method: METHODS[method].mergeable, broken=SUBTRACTS))
def test_merging_is_exact_and_unmerging_restores_every_bit(name: str, method: str) -> None:
    tested = MODELS[name]
    model = adapt(name, method)
    expected = tested.output(model)
    model.merge_adapter(safe_merge=True)
    # float32: rounding of W0 + update, through a few layers
    torch.testing.assert_close(tested.output(model), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert same(tested.output(model), expected, method)
    assert_base_untouched(model, name)


@pytest.mark.parametrize(("name", "method"), cases(lambda method: METHODS[method].mergeable))
def test_merging_for_good_leaves_the_plain_model_with_the_same_output(name: str, method: str) -> None:
    tested = MODELS[name]
    model = adapt(name, method)
    expected = tested.output(model)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(tested.output(merged), expected, rtol=1e-4, atol=1e-4)
    assert [(key, type(module)) for key, module in merged.named_modules()] == [
        (key, type(module)) for key, module in tiny(name).named_modules()
    ]


@pytest.mark.parametrize(("name", "method"), cases(lambda method: METHODS[method].routed))
def test_merging_a_routed_adapter_is_an_error_that_says_why(name: str, method: str) -> None:
    model = adapt(name, method)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=r"cannot be merged.*keep it as an adapter"):
            merge()
    assert_base_untouched(model, name)


@pytest.mark.parametrize("method", [name for name in OURS if METHODS[name].mergeable])
def test_unmerging_a_bfloat16_base_restores_every_bit(method: str) -> None:
    torch.manual_seed(2)
    model = peft.get_peft_model(Mlp().bfloat16(), build_config(method, r=8, target_modules=["fc1"]))
    shake(model)
    base = model.base_model.model.fc1.base_layer
    x = MODELS["mlp"].batch()["x"].bfloat16()
    before = base.weight.clone()
    with model.disable_adapter():
        expected = model(x)
    model.merge_adapter()
    assert not torch.equal(base.weight, before)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert torch.equal(base.weight, before)


def test_attach_makes_a_peft_model_of_a_recipe() -> None:
    recipe = AdapterConfig(method="goat", r=8, num_experts=4, top_k=1, rho=5.0, dropout=0.25, balance_coef=0.5)
    model = attach(tiny("mlp"), recipe, ("fc1",))
    config = model.peft_config["default"]
    assert (config.num_experts, config.top_k, config.rho, config.dropout) == (4, 1, 5.0, 0.25)
    assert config.balance_weight == 0.5
    assert [n for n, m in model.named_modules() if isinstance(m, MosgoatLinear)] == ["base_model.model.fc1"]
    MODELS["mlp"].output(model.train())
    assert balance_loss(model) > 0
