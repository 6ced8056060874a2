"""FLOPs against the counter's own sum over whole models with real weights, and against loops over experts.

All numbers are integers: equality is exact.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.adapters import attach
from common.config import AdapterConfig
from common.counting import MODELS, Architecture, count, find_model
from common.counting.flops import paper_layer_flops
from common.errors import UserError

TOKENS, LAYERS = 12, 2


def measured(run: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """FLOPs of a forward, and of it with its backward."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = run()
        forward = counter.get_total_flops()
        result.backward()
    return forward, counter.get_total_flops()


def text_run(model: nn.Module) -> Callable[[], torch.Tensor]:
    return lambda: model(input_ids=torch.zeros(1, TOKENS, dtype=torch.long)).logits.sum()


def unet_run(model: nn.Module) -> Callable[[], torch.Tensor]:
    inputs: dict[str, Any] = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 77, 24),
        "added_cond_kwargs": {"text_embeds": torch.zeros(1, 16), "time_ids": torch.zeros(1, 6)},
    }
    return lambda: model(**inputs).sample.sum()


METHODS = ["dora", "moslora", "goat", "full_moe"]


@pytest.mark.parametrize("method", METHODS)
def test_flops_are_those_of_the_whole_adapted_model(method: str, llama: Architecture) -> None:
    adapter = AdapterConfig(method=method, r=8, dropout=0.0)  # type: ignore[arg-type]
    model = attach(llama.build(), adapter, llama.targets)
    forward, training = measured(text_run(model))
    flops = count(llama, adapter, tokens=TOKENS).flops
    assert flops is not None
    assert flops.tokens == TOKENS
    assert (flops.base + flops.adapter) * TOKENS + flops.adapter_once == forward
    assert flops.training * TOKENS + flops.training_once == training


def test_flops_of_a_unet_are_those_of_one_picture(folders: dict[str, str]) -> None:
    architecture, adapter = find_model(folders["unet"]), AdapterConfig(method="lora", r=4, dropout=0.0)
    model = attach(architecture.build(), adapter, architecture.targets)
    flops = count(architecture, adapter).flops
    assert flops is not None
    assert (flops.unit, flops.tokens) == ("picture", None)
    assert (flops.base + flops.adapter, flops.training) == measured(unet_run(model))


def test_flops_of_a_tower_are_spread_over_patches_and_class_token(folders: dict[str, str]) -> None:
    architecture, adapter = find_model(folders["clip"]), AdapterConfig(method="moslora", r=8, dropout=0.0)
    model = attach(architecture.build(), adapter, architecture.targets)
    forward, _ = measured(lambda: model(pixel_values=torch.zeros(1, 3, 32, 32)).image_embeds.sum())
    flops = count(architecture, adapter).flops
    assert flops is not None
    assert flops.tokens == 17
    assert round((flops.base + flops.adapter) * 17) + flops.adapter_once == forward


def test_full_fine_tuning_takes_three_forwards(llama: Architecture) -> None:
    forward, training = measured(text_run(llama.build()))
    flops = count(llama, AdapterConfig(method="full"), tokens=TOKENS).flops
    assert flops is not None
    assert (flops.base * TOKENS, flops.training * TOKENS) == (forward, training) == (forward, 3 * forward)


def test_work_for_any_number_of_tokens_is_told_apart(llama: Architecture) -> None:
    """MoSLoRA: A, M and B are applied as M·A and B, so that a token costs what LoRA's does, and M·A is made once."""
    flops = count(llama, AdapterConfig(method="moslora", r=8, dropout=0.0), tokens=TOKENS).flops
    assert flops is not None
    inputs, outputs = 4 * 32 + 48, 32 + 16 + 16 + 48 + 32  # of q, k, v, up and down
    assert flops.adapter == LAYERS * 2 * 8 * (inputs + outputs)
    assert flops.adapter_once == LAYERS * 2 * 8 * 8 * inputs


def loop_over_experts(x: torch.Tensor, n: int, m: int, r: int, experts: int, chosen: int) -> torch.Tensor:
    """The layer as the released code computes it: each chosen expert by itself."""
    router = torch.zeros(experts, n) @ x  # (E,)
    y = torch.zeros(m, n) @ x
    for _ in router.topk(chosen, dim=0).indices:
        y = y + torch.zeros(m, r // experts) @ (torch.zeros(r // experts, n) @ x)
    return y


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (4, 1), (4, 4)])
def test_the_papers_convention_is_a_loop_over_the_chosen_experts(experts: int, chosen: int) -> None:
    n, m, r = 24, 40, 8
    with FlopCounterMode(display=False) as counter:
        loop_over_experts(torch.zeros(n, 1), n, m, r, experts, chosen)
    adapter = AdapterConfig(method="goat", r=r, num_experts=experts, top_k=chosen)
    assert counter.get_total_flops() - 2 * n * m == paper_layer_flops(adapter, n, m)


def test_the_papers_convention_for_the_other_methods() -> None:
    """Multiplications and additions of every matrix product, written out for 24 inputs, 40 outputs, r = 8."""
    assert paper_layer_flops(AdapterConfig(method="lora", r=8), 24, 40) == 2 * (8 * 24 + 40 * 8)
    assert paper_layer_flops(AdapterConfig(method="moslora", r=8), 24, 40) == 2 * (8 * 24 + 8 * 8 + 40 * 8)
    hydralora = AdapterConfig(method="hydralora", r=8, num_experts=4)
    assert paper_layer_flops(hydralora, 24, 40) == 2 * (2 * 24 + 40 * 8 + 4 * 24)
    full_moe = AdapterConfig(method="full_moe", num_experts=8, top_k=2)
    assert paper_layer_flops(full_moe, 24, 40) == 2 * (2 * 40 * 24 - 40 * 24 + 8 * 24)
    assert paper_layer_flops(AdapterConfig(method="adamole", r=8), 24, 40) is None  # how many experts is the token's


def test_experts_cost_less_than_full_experts_by_orders_of_magnitude() -> None:
    """What [G] makes of eq. 84-86, for a layer of ViT-B/32 and one of LLaMA-2-7B."""
    for n, m in ((768, 768), (4096, 11_008)):
        goat = paper_layer_flops(AdapterConfig(method="goat", r=8), n, m)
        full = paper_layer_flops(AdapterConfig(method="full_moe"), n, m)
        assert goat is not None
        assert full is not None
        assert full / goat > 10


def test_a_text_longer_than_the_model_allows_is_an_error() -> None:
    with pytest.raises(UserError, match="--tokens=513 is longer than roberta-large allows; use at most 512"):
        count(MODELS["roberta-large"], AdapterConfig(), tokens=513)


def test_sdxl_takes_the_designs_flops() -> None:
    """DESIGN 5.3: 6.8 TFLOP a picture."""
    flops = count(MODELS["sdxl-unet"], AdapterConfig(method="full")).flops
    assert flops is not None
    assert f"{flops.base / 1e12:.1f}" == "6.8"
