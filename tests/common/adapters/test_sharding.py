"""Adapters on weights that FSDP2 has sharded: the same outputs, gradients, losses and chosen directions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from common.adapters import auxiliary_loss, balance_loss
from common.adapters.schedule import AdapterSchedule
from tests.common.adapters.contract import OURS, adapt

INPUTS = torch.randn(10, 24, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def step(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The output, and the gradients of a loss that all parts of the engine's loss enter."""
    torch.manual_seed(3)
    y = model(INPUTS)
    (y.square().sum() + balance_loss(model) + auxiliary_loss(model)).backward()
    gradients = {n: plain(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach().clone(), **gradients}


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("method", OURS)
def test_a_sharded_model_trains_as_a_whole_one(method: str, group: None) -> None:
    model = adapt("mlp", method, dropout=0.1).train()
    alone = step(model)
    model.zero_grad()
    mesh = init_device_mesh("cpu", (1,))
    for layer in (model.base_model.model.fc1, model.base_model.model.fc2, model):
        fully_shard(layer, mesh=mesh)
    torch.testing.assert_close(step(model), alone)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_lora_dash_chooses_the_same_directions_of_a_sharded_model(group: None) -> None:
    chosen = []
    for sharded in (False, True):
        model = adapt("mlp", "lora_dash")
        layer = model.base_model.model.fc1
        if sharded:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        AdapterSchedule(model, total_steps=4).after_step(2)
        chosen.append(layer.mosgoat_V["default"].clone())
    assert chosen[0].any()
    assert torch.equal(*chosen)
