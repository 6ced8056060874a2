"""Frozen weights divided among processes: each holds its share, and nothing else changes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common.adapters import build_config
from common.errors import UserError
from common.training.sharding import require_known_deepspeed, require_no_fsdp, require_shardable, shard_frozen

INPUTS = torch.randn(6, 16, generator=torch.Generator().manual_seed(4))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


def adapted(method: str) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(Blocks(), build_config(method, r=8, target_modules=["first", "blocks.1"], dropout=0.0))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model(INPUTS).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _in_each_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for method in ("moslora", "goat"):
        model = adapted(method)
        expected = gradients(adapted(method))
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert shard_frozen(model) == frozen
        found = gradients(model)
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor) != parameter.requires_grad, name
        own = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        assert 0.4 * frozen < own < 0.6 * frozen
        torch.testing.assert_close(found, expected)
    dist.destroy_process_group()


def test_each_process_holds_half_of_the_frozen_weights_and_all_that_is_trained(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_in_each_process, (str(tmp_path),), nprocs=2)


def test_sharding_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.shard=true divides .* there is one"):
        require_shardable("model.shard")


def test_fsdp_of_accelerate_is_refused_with_the_way_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    require_no_fsdp()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"--model\.shard true"):
        require_no_fsdp()


def test_deepspeed_is_told_and_zero_3_refused() -> None:
    assert require_known_deepspeed(None, shard=True) is None
    assert "ZeRO stage 2" in str(require_known_deepspeed(SimpleNamespace(zero_stage=2), shard=False))
    with pytest.raises(UserError, match=r"stage=3 cannot be used"):
        require_known_deepspeed(SimpleNamespace(zero_stage=3), shard=False)
    with pytest.raises(UserError, match=r"stage=2 and model.shard=true"):
        require_known_deepspeed(SimpleNamespace(zero_stage=2), shard=True)
