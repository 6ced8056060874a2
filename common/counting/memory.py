"""Bytes on each GPU in training: what is held throughout is added up from shapes, what a step makes is counted.

For that the step's forward and backward run on tensors that have a shape and no memory, and everything alive at once is
counted: activations kept for the backward, logits, what an operation needs in passing. The adapters are those that
train, the models those of transformers and diffusers, the attention fused as on a GPU. Dropout is left out: the
adapters of this suite keep nothing for it, PEFT's keep a mask and a copy of each layer's input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.adapters import METHODS
from common.config import AdapterConfig, Precision
from common.counting.count import adapted, require_targets
from common.counting.flops import sample_inputs, tokens_of
from common.counting.live import LiveBytes, norms_as_on_cuda
from common.counting.models import Architecture
from common.errors import UserError
from common.training.sharding import repeated_blocks

Quantization = Literal["none", "nf4"]

TEXT_TOKENS = 1472  # the most of a conversation beside its picture, [M] B.2
_FLOAT32, _MOMENTS = 4, 8
_NF4_BLOCK, _NF4_SECOND_BLOCK = 64, 256
_TOWER = r".*vision_tower\..*"


@dataclass(frozen=True)
class Setting:
    """How a step is run.

    Args:
        gpus: processes that train together, one on each GPU.
        batch_per_gpu: samples of a micro-batch on one GPU.
        tokens: of a sample, those of its picture included; None: 512 of a text, or the picture and 1472 of a
            conversation. Pictures alone have their own number.
        supervised: tokens of a sample that logits are computed for; None: all of its text.
        precision: `bf16`: frozen weights in bfloat16, under autocast; `float32`.
        quantize: `nf4`: the language model in 4 bit, but for its output head.
        shard: the frozen weights are divided among the GPUs (FSDP2).
        checkpointing: each block is computed again in the backward.
        tower_r: rank on the vision tower of a LLaVA; None: the adapter's.
    """

    gpus: int = 1
    batch_per_gpu: int = 1
    tokens: int | None = None
    supervised: int | None = None
    precision: Precision = "bf16"
    quantize: Quantization = "none"
    shard: bool = False
    checkpointing: bool = False
    tower_r: int | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    Args:
        tokens: of a sample; None for a UNet.
        supervised: tokens of a sample that have logits; None where there is no output head.
        trainable: trained parameters.
        frozen: this GPU's share of the model's frozen weights.
        gathered: an estimate of what is whole here in passing of weights that are divided: what lies outside the
            blocks, and two blocks, since the next one is fetched while one is computed.
        unpacked: the largest weight in 4 bit, which is unpacked where it is multiplied.
        start: frozen tensors of the adapters, such as GOAT's start values, in float32.
        trained: trained weights, in float32.
        gradients: theirs, in float32; twice with several GPUs, since DDP sends a copy.
        moments: AdamW's two, in float32.
        kept: activations that wait for the backward when the forward has reached the output head; a part of `step`.
        logits: logits and what the loss keeps of them; a part of `step`.
        step: the most that a forward and backward hold at once beside the weights and their gradients.
    """

    tokens: int | None
    supervised: int | None
    trainable: int
    frozen: int
    gathered: int
    unpacked: int
    start: int
    trained: int
    gradients: int
    moments: int
    kept: int
    logits: int
    step: int

    @property
    def total(self) -> int:
        """All at the peak of a step. CUDA's own, gaps between its allocations and NCCL's buffers come on top."""
        held = self.frozen + self.gathered + self.unpacked + self.start
        return held + self.trained + self.gradients + self.moments + self.step


def memory(architecture: Architecture, adapter: AdapterConfig, setting: Setting, *, device: str = "cuda") -> Memory:
    """Count what training takes on each GPU; no weights are needed, nor a GPU.

    Args:
        architecture: from `find_model` or `MODELS`.
        adapter: the method and its settings, already checked by `adapter_problems`; its dropout is left out.
        setting: how a step is run.
        device: `cuda` or `cpu`, by whose autocast the step is run.

    Raises:
        UserError: an impossible setting, a model of another kind, a method whose memory depends on values.
    """
    model = architecture.make()
    tokens, supervised = _lengths(architecture, model, adapter, setting)
    in_4_bit = _language_layers(architecture, model) if setting.quantize == "nf4" else frozenset()
    own = {*model.parameters(), *model.buffers()}
    whole = _with_adapter(architecture, model, adapter, setting)
    frozen = {each for each in model.parameters() if each in own and not each.requires_grad}
    if setting.precision == "bf16":
        for parameter in _in_bf16(architecture, model) & frozen:
            parameter.data = parameter.data.to(torch.bfloat16)
    packed = frozen & in_4_bit
    sizes = {each: nf4_bytes(each.numel()) if each in packed else each.nbytes for each in frozen}
    share = setting.gpus if setting.shard else 1
    beside = [each for each in (*whole.parameters(), *whole.buffers()) if each not in own and not each.requires_grad]
    trainable = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    gathered = _gathered(model, sizes, share)
    unpacked = max((each.nbytes for each in packed), default=0)
    # last, since it puts other tensors in the place of these
    kept, logits, step = _run(architecture, model, whole, setting, tokens, supervised, device)
    return Memory(
        tokens,
        supervised,
        trainable,
        frozen=-(-sum(sizes.values()) // share),
        gathered=gathered,
        unpacked=unpacked,
        start=sum(each.nbytes for each in beside),
        trained=_FLOAT32 * trainable,
        gradients=_FLOAT32 * trainable * (1 if setting.gpus == 1 else 2),
        moments=_MOMENTS * trainable,
        kept=kept,
        logits=logits,
        step=step,
    )


def nf4_bytes(numbers: int) -> int:
    """Bytes of a weight in bitsandbytes' NF4 with double quantisation.

    Half a byte a number; for each 64 of them a constant in 8 bit; for each 256 constants one in float32; and two tables
    and an offset.
    """
    blocks = -(-numbers // _NF4_BLOCK)
    second = -(-blocks // _NF4_SECOND_BLOCK)
    return -(-numbers // 2) + blocks + _FLOAT32 * (second + 16 + 256 + 1)


def _lengths(
    architecture: Architecture, model: nn.Module, adapter: AdapterConfig, setting: Setting
) -> tuple[int | None, int | None]:
    """Tokens of a sample and those that have logits; raises for what cannot be counted."""
    kind, name, config = architecture.kind, architecture.name, cast(Any, model.config)
    if kind == "other":
        raise UserError(f"--memory is for language models, vision towers, LLaVA and UNets; {name} is none of them")
    if adapter.method == "full_moe":
        raise UserError("--memory: the experts of full_moe get as many tokens as the router gives them")
    for key in ("gpus", "batch_per_gpu", "supervised", "tower_r"):
        value = getattr(setting, key)
        if value is not None and value < 1:
            raise UserError(f"--{key.replace('_', '-')}={value} must be at least 1")
    if setting.shard and setting.gpus == 1:
        raise UserError("--shard divides the frozen weights among GPUs; give --gpus 2 or more")
    if setting.shard and setting.quantize != "none":
        raise UserError("--shard is not for --quantize nf4, whose packed weights cannot be divided")
    if setting.quantize != "none" and kind not in ("text", "llava"):
        raise UserError(f"--quantize {setting.quantize} is for language models; {name} has none")
    if setting.tower_r is not None and kind != "llava":
        raise UserError(f"--tower-r={setting.tower_r} is for a LLaVA; {name} has no vision tower beside its model")
    if kind not in ("text", "llava") and setting.tokens is not None:
        raise UserError(f"--tokens={setting.tokens} has no effect on {name}; it is for language models")
    picture = _picture_tokens(config) if kind == "llava" else 0
    wanted = picture + TEXT_TOKENS if kind == "llava" and setting.tokens is None else setting.tokens
    if wanted is not None and wanted <= picture:
        raise UserError(f"--tokens={wanted} must be at least {picture + 1}{' with a picture' if picture else ''}")
    tokens = tokens_of(architecture, config.text_config if kind == "llava" else config, wanted)
    if not hasattr(model, "lm_head"):
        if setting.supervised is not None:
            raise UserError(f"--supervised={setting.supervised} is for language models; {name} has no output head")
        return tokens, None
    assert tokens is not None
    supervised = tokens - picture if setting.supervised is None else setting.supervised
    if supervised > tokens:
        raise UserError(f"--supervised={supervised} is more than the {tokens} tokens of a sample")
    return tokens, supervised


def _picture_tokens(config: Any) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _with_adapter(architecture: Architecture, model: nn.Module, adapter: AdapterConfig, setting: Setting) -> nn.Module:
    """The model with what is trained, in training mode, on the meta device."""
    if METHODS[adapter.method].build is None:
        return model.requires_grad_(True).train()
    targets = tuple(adapter.target_modules or architecture.targets)
    require_targets(architecture, model, targets)
    ranks = {} if setting.tower_r is None else {"rank_pattern": {_TOWER: setting.tower_r}}
    whole = adapted(model, adapter, targets, **ranks)
    if architecture.kind == "llava":  # trained on, whole, beside the adapters
        model.get_submodule("model.multi_modal_projector").requires_grad_(True)
    return whole.train()


def _language_layers(architecture: Architecture, model: nn.Module) -> frozenset[nn.Parameter]:
    """The weights that NF4 packs: those of the language model's linear layers, but for its head."""
    inside = "model.language_model." if architecture.kind == "llava" else ""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = [name for name in linears if name.startswith(inside) and name != "lm_head"]
    return frozenset(parameter for name in names for parameter in linears[name].parameters() if parameter.ndim == 2)


def _in_bf16(architecture: Architecture, model: nn.Module) -> set[nn.Parameter]:
    """What precision bf16 keeps in bfloat16 where it is frozen; of a vision tower the linear layers, as `vit train`."""
    if architecture.kind != "pictures":
        return set(model.parameters())
    return {weight for module in model.modules() if isinstance(module, nn.Linear) for weight in module.parameters()}


def _gathered(model: nn.Module, sizes: dict[nn.Parameter, int], share: int) -> int:
    if share == 1:
        return 0
    blocks = [sum(sizes.get(each, 0) for each in block.parameters()) for block in repeated_blocks(model)]
    outside = sum(sizes.values()) - sum(blocks)
    return (outside + 2 * max(blocks, default=0)) * (share - 1) // share


def _run(
    architecture: Architecture,
    model: Any,
    whole: nn.Module,
    setting: Setting,
    tokens: int | None,
    supervised: int | None,
    device: str,
) -> tuple[int, int, int]:
    """Bytes of a step: kept when the forward has reached the head, of the logits, and the peak of all."""
    if setting.checkpointing:
        _checkpoint_blocks(model)
    if device == "cuda" and setting.precision == "bf16":
        norms_as_on_cuda(model)
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16")
    # fake tensors pass for the CPU's, which has an attention that keeps no scores, as the GPU's has
    with FakeTensorMode(allow_non_fake_inputs=True):
        whole.to_empty(device="cpu")
        trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        there = [*whole.parameters(), *whole.buffers(), *(each.grad for each in trained)]
        step = _step(architecture, model, setting.batch_per_gpu, tokens, supervised)
        live = LiveBytes()
        live.leave_out([tensor for tensor in there if tensor is not None])
        with live, bf16:
            hidden, loss_of = step()
            kept = live.now
            loss = loss_of(hidden)
            logits = live.now - kept
            del hidden
            loss.backward()
    return kept, logits, live.peak


def _checkpoint_blocks(model: Any) -> None:
    # as in training; only the state of the random numbers, which have no part here, cannot be kept without memory
    how = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(model, "enable_gradient_checkpointing"):  # diffusers
        model.enable_gradient_checkpointing(functools.partial(checkpoint, **how))
        return
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(how)


def _step(
    architecture: Architecture, model: Any, batch: int, tokens: int | None, supervised: int | None
) -> Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """A forward up to what the loss reads, and the loss of it."""
    kind = architecture.kind
    if kind == "llava":
        assert tokens is not None
        text = model.config.text_config
        side = model.config.vision_config.image_size
        pixels = torch.zeros(batch, 3, side, side)
        ids = torch.zeros(batch, tokens - _picture_tokens(model.config), dtype=torch.long)
        mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool)

        def forward() -> Tensor:
            seen = torch.cat(list(model.model.get_image_features(pixels).pooler_output))
            told = model.get_input_embeddings()(ids)
            embeds = torch.cat([seen.view(batch, -1, text.hidden_size).to(told.dtype), told], dim=1)
            language = model.model.language_model
            return language(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    else:
        inputs = sample_inputs(architecture, model.config, tokens, batch)
        if kind == "text":
            inputs["attention_mask"] = inputs["attention_mask"].bool()

        def forward() -> Tensor:
            body = model.base_model if supervised is not None else model  # without the output head
            outputs = body(**inputs)
            return outputs[0]

    def loss(hidden: Tensor) -> Tensor:
        if supervised is None:
            return hidden.float().square().mean()
        marked = torch.zeros(batch * supervised, dtype=torch.long)
        return F.cross_entropy(model.lm_head(hidden.flatten(0, 1)[marked]).float(), marked)

    return lambda: (forward(), loss)
