"""Adapters on a base in 4 bits (bitsandbytes NF4, which has a CPU path): QMoSLoRA, QGOAT and the others."""

import functools
import re
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from common.adapters import METHODS, adapter_tensors, attach, balance_loss, build_config
from common.adapters.quantised import PLAIN_WEIGHTS_ONLY, keep_layout
from common.adapters.schedule import AdapterSchedule, auxiliary_loss
from common.config import AdapterConfig
from common.errors import UserError
from tests.common.adapters.contract import METHOD_NAMES, OURS, same, train
from tests.common.adapters.tiny_models import MODELS, shake, tiny

bitsandbytes = pytest.importorskip("bitsandbytes")


def nf4(storage: torch.dtype = torch.uint8) -> nn.Module:
    """Two linear layers in NF4 with bfloat16 activations: (..., 64) -> (..., 64)."""
    torch.manual_seed(0)
    linear = functools.partial(
        bitsandbytes.nn.Linear4bit, compute_dtype=torch.bfloat16, quant_type="nf4", quant_storage=storage
    )
    net = nn.Sequential()
    net.add_module("fc1", linear(64, 128))
    net.add_module("act", nn.Tanh())
    net.add_module("fc2", linear(128, 64))
    net.is_loaded_in_4bit = True  # as transformers marks its models; PEFT's AdaLoRA looks at nothing else
    return net.to("cpu")  # quantises


def packed(model: nn.Module) -> dict[str, Tensor]:
    """The 4-bit weights as bytes: packed bits can spell NaN in a floating storage."""
    # from the state: on some CPUs bitsandbytes lays the bits out anew for evaluation, and back for its state
    return {
        key.replace("base_layer.", "").rpartition("fc")[2]: value.clone().view(torch.uint8)
        for key, value in model.state_dict().items()
        if re.fullmatch(r".*fc\d\.(base_layer\.)?weight", key)
    }


X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(4)).bfloat16()


@pytest.mark.parametrize("method", [name for name in METHOD_NAMES if name not in PLAIN_WEIGHTS_ONLY])
def test_a_4_bit_base_trains_saves_and_loads_and_stays_as_it_is(method: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    base, fresh = nf4(), nf4()
    for net in (base, fresh):
        keep_layout(net)
    before, expected = packed(base), base(X)
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["fc1", "fc2"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    schedule = AdapterSchedule(model, total_steps=6)
    losses = []
    for step in range(1, 7):
        optimizer.zero_grad()
        loss = (model.train()(X).float() - X.float()).square().mean()
        (loss + balance_loss(model) + auxiliary_loss(model)).backward()
        optimizer.step()
        schedule.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert same(loaded(X), model(X), method)
    assert not torch.equal(loaded(X), expected)
    with model.disable_adapter():
        assert torch.equal(model(X), expected)
    assert list(packed(model)) == list(before) == ["1.weight", "2.weight"]
    assert all(torch.equal(value, before[name]) for name, value in packed(model).items())


@pytest.mark.parametrize("method", sorted(PLAIN_WEIGHTS_ONLY))
def test_a_method_that_needs_plain_weights_says_so(method: str) -> None:
    with pytest.raises(UserError, match=f"method={method} cannot be put on fc1, whose weight is quantised.*use lora"):
        attach(nf4(), AdapterConfig(method=method), ["fc1", "fc2"])


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_evaluating_a_4_bit_base_changes_neither_a_later_start_nor_a_later_backward(method: str) -> None:
    models = []
    for evaluated in (False, True):
        torch.manual_seed(2)
        base = nf4().eval()
        if evaluated:
            base(X)
        models.append(peft.get_peft_model(base, build_config(method, r=8, target_modules=["fc1", "fc2"])))
    for key, value in adapter_tensors(models[0]).items():
        # bitsandbytes has rounded the scales of its blocks to bfloat16 meanwhile; another start differs by 0.05
        torch.testing.assert_close(adapter_tensors(models[1])[key], value, rtol=0, atol=3e-3)
    shake(models[1])
    models[1].eval()(X)
    models[1].train()(X).float().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in models[1].parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name in OURS if METHODS[name].mergeable])
def test_merging_into_a_4_bit_weight_is_an_error_that_says_what_to_do(method: str) -> None:
    torch.manual_seed(2)
    model = peft.get_peft_model(nf4(), build_config(method, r=8, target_modules=["fc1"]))
    before = packed(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=r"layer fc1 has a quantised weight .*load the base model in bfloat16"):
            merge()
    assert all(torch.equal(value, before[name]) for name, value in packed(model).items())


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_bits_packed_into_a_floating_storage_are_not_mistaken_for_weights(method: str) -> None:
    torch.manual_seed(2)  # FSDP shards floating tensors only, so QLoRA with it packs four bits into bfloat16
    base = nf4(torch.bfloat16)
    expected = base(X)
    model = peft.get_peft_model(base, build_config(method, r=8, target_modules=["fc1"]))
    shake(model)
    assert all(value.dtype == torch.float32 for value in adapter_tensors(model).values())
    assert model(X).isfinite().all()
    with model.disable_adapter():
        assert torch.equal(model(X), expected)
    if method == "moslora":
        with pytest.raises(UserError, match="quantised weight"):
            model.merge_adapter()


@pytest.fixture(scope="module")
def saved_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny("llava").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_qlora_of_a_llava_that_transformers_loads_in_4_bits(method: str, saved_llava: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    def load() -> nn.Module:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        return LlavaForConditionalGeneration.from_pretrained(saved_llava, quantization_config=config)

    tested = MODELS["llava"]
    model = peft.prepare_model_for_kbit_training(load(), gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(2)
    model = peft.get_peft_model(model, build_config(method, r=8, target_modules=list(tested.targets)))
    assert type(model.base_model.model.get_submodule("model.language_model." + tested.layer).base_layer) is (
        bitsandbytes.nn.Linear4bit
    )
    losses = train(model, "llava", steps=4)
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(load(), tmp_path).eval()
    # prepare_model_for_kbit_training widens norms and embeddings to float32; the other one keeps what it loaded
    torch.testing.assert_close(tested.output(loaded).float(), tested.output(model).float(), rtol=0, atol=0.05)
