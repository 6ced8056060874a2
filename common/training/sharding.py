"""Divide the frozen weights of a model among the processes that train its adapters (FSDP2)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from common.errors import UserError
from common.training import processes


def require_shardable(key: str) -> None:
    """Refuse to shard where there is nobody to share with; `key` is the recipe's, for the message.

    Raises:
        UserError: this is the only process.
    """
    if processes.world_size() < 2:
        raise UserError(
            f"{key}=true divides the frozen weights among processes, and there is one; start with torchrun "
            f"--nproc-per-node N, or leave {key} out"
        )


def require_no_fsdp() -> None:
    """Refuse the FSDP of an accelerate configuration, which would divide what is trained as well.

    Raises:
        UserError: `accelerate launch` was told to use it.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise UserError(
            "ACCELERATE_USE_FSDP=true (use_fsdp in the accelerate configuration) is not supported: it divides the "
            "adapters too, whose checkpoints are written by one process. Leave it out; `mosgoat llava train` divides "
            "the frozen weights with --model.shard true, under torchrun and accelerate alike"
        )


def require_known_deepspeed(plugin: Any, shard: bool) -> str | None:
    """What to say about DeepSpeed, None where it is not used.

    Args:
        plugin: accelerate's `deepspeed_plugin`, None without DeepSpeed.
        shard: whether the frozen weights are to be divided by FSDP2.

    Raises:
        UserError: ZeRO-3, or DeepSpeed together with FSDP2.
    """
    if plugin is None:
        return None
    stage = plugin.zero_stage
    if stage > 2 or shard:
        raise UserError(
            f"DeepSpeed with zero_optimization.stage={stage}{' and model.shard=true' if shard else ''} cannot be used: "
            "it would divide the frozen weights, which FSDP2 does here. Use stage 1 or 2 without model.shard, or "
            "model.shard=true without DeepSpeed"
        )
    return f"DeepSpeed, ZeRO stage {stage}: its checkpoints hold the frozen weights as well as what is trained"


def shard_frozen(objective: nn.Module) -> int:
    """Leave each process with its share of every frozen weight; a collective call.

    What is trained stays whole in every process, its gradients averaged by DDP as without sharding: checkpoints,
    optimizer and the adapter that is saved do not change. A block is gathered when its forward or backward begins
    and given back at its end. After this call the frozen weights may be used inside `objective.forward`
    and `gathered` alone.

    Args:
        objective: on its device, the same weights in every process; wrapped by DDP already, which would refuse
            weights that are divided.

    Returns:
        How many frozen parameters were divided.
    """
    trained = {parameter for parameter in objective.parameters() if parameter.requires_grad}
    frozen = sum(parameter.numel() for parameter in objective.parameters() if not parameter.requires_grad)
    mesh = init_device_mesh(PartialState().device.type, (processes.world_size(),))
    for module in [*repeated_blocks(objective), objective]:
        fully_shard(module, mesh=mesh, ignored_params=trained)
    return frozen


@contextlib.contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Let a model be used otherwise than through `objective.forward`, such as to generate; a collective call.

    What lies outside the blocks is whole in every process meanwhile; each block is gathered by its own forward. Every
    process must call the same forwards. Without divided weights nothing happens.
    """
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def repeated_blocks(objective: nn.Module) -> list[nn.Module]:
    """The members of every stack of like blocks, those inside others first, as FSDP2 wants them."""
    stacks = [module for module in objective.modules() if isinstance(module, nn.ModuleList)]
    alike = [stack for stack in stacks if len(stack) > 1 and len({type(block) for block in stack}) == 1]
    blocks = [block for stack in reversed(alike) for block in stack]
    return [block for block in blocks if any(not parameter.requires_grad for parameter in block.parameters())]
