"""The part of `benchmarks/llava.py` for a GPU: a model of LLaMA-3-8B's shape under LoRA, MoSLoRA and GOAT."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llava_world import LLAMA3_8B, DrawnSamples, Lengths, Shape, adapted, batch_of, draw_lengths, make_base
from measure import Row, medians
from torch import nn

from common.adapters import balance_loss
from common.config import Method, Precision
from common.training.order import EpochOrder, Grouping
from llava.config import Quantization
from llava.objective import LlavaObjective

MIX = 665_298  # conversations of llava_v1_5_mix665k.json
GPUS, PAPER_HOURS = 4, 20  # [M] appendix B: about 20 hours on four A100-80G


def large_rows(
    methods: Sequence[Method],
    quantizations: Sequence[Quantization],
    *,
    batch: int,
    repeats: int,
    device: torch.device,
    peak: float | None,
    precision: Precision = "bf16",
    shape: Shape = LLAMA3_8B,
    r: int = 64,
) -> list[Row]:
    """Whole optimizer steps of length-grouped micro-batches with gradient checkpointing.

    Args:
        methods: adapters to measure.
        quantizations: of the language model.
        batch: samples of a micro-batch.
        repeats: timed turns.
        device: the GPU.
        peak: its dense FLOP/s; None: not known, and no share is given.
        precision: of the frozen weights that are not quantised.
        shape: of the model.
        r: total rank on language model and tower.
    """
    lengths = draw_lengths(50 * batch, shape)
    samples = DrawnSamples(lengths, shape)
    order = EpochOrder(len(samples), batch, 0, Grouping(lengths.total))
    parts = [order.batch(step)[1] for step in np.linspace(0, order.steps_per_epoch - 1, 5).astype(int)]
    rows: list[Row] = []
    for quantization in quantizations:
        for method in methods:
            label = f"{method}, {precision if quantization == 'none' else quantization}"
            rows += _rows_of(label, method, quantization, samples, parts, repeats, device, peak, precision, shape, r)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def _rows_of(
    label: str,
    method: Method,
    quantization: Quantization,
    samples: DrawnSamples,
    parts: list[list[int]],
    repeats: int,
    device: torch.device,
    peak: float | None,
    precision: Precision,
    shape: Shape,
    r: int,
) -> list[Row]:
    base = adapted(make_base(shape, precision, device, quantization), method, r, checkpointing=True)
    objective = LlavaObjective(base).train()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0, fused=True)
    batches = [batch_of(samples, part, device) for part in parts]

    def steps() -> None:
        for each in batches:
            with base.autocast():
                loss = objective(**each)["loss"] + balance_loss(base.model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    steps()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = medians({label: steps}, repeats, device, warm_up=0)[label]
    chosen = np.concatenate(parts)
    tokens = int(samples.lengths.total[chosen].sum())
    flops = model_flops(base.llava(), shape, samples.lengths, chosen) / seconds
    share, over = (flops / peak, "peak") if peak else (None, "")
    mean = float(samples.lengths.total.mean())
    hours = MIX * mean / (tokens / seconds * GPUS) / 3600
    rows = [
        Row(label, tokens / seconds, "real tokens/s"),
        Row(f"{label}, model FLOP/s (MFU)", flops / 1e12, "TFLOP/s", share, over),
    ]
    if device.type == "cuda":
        rows.append(Row(f"{label}, peak memory", torch.cuda.max_memory_allocated(device) / 2**30, "GiB"))
    estimate = f"{label}, {MIX:,} samples on {GPUS} such GPUs, estimated"
    return [*rows, Row(estimate, hours, "h", hours / PAPER_HOURS, f"{PAPER_HOURS} h on 4 A100 [M]")]


def model_flops(llava: Any, shape: Shape, lengths: Lengths, chosen: np.ndarray) -> float:
    """What forward and backward must compute for these samples: no padding, nothing twice.

    A frozen weight takes 2 FLOP a token in the forward and 2 in the backward, a trained one 2 more. The head works on
    supervised tokens alone. Attention takes 4 T² H in the forward (half of it where it is causal) and twice that in the
    backward.
    """

    def weights(module: nn.Module) -> float:
        """FLOP for one token, forward and backward, of the matrices that it is multiplied by."""
        total = 0.0
        start_values = ((name, buffer) for name, buffer in module.named_buffers() if "mosgoat" in name)
        for name, weight in [*module.named_parameters(), *start_values]:
            if weight.dim() == 2 and not any(word in name for word in ("embed", "router", "original_module")):
                packed = getattr(weight, "quant_state", None)
                size = weight.numel() if packed is None else int(np.prod(packed.shape))
                total += size * (6 if weight.requires_grad else 4)
        return total

    texts, pictures = lengths.total[chosen].astype(float), int(lengths.has_image[chosen].sum())
    patches = shape.image_tokens + 1  # CLS
    language = weights(llava.model.language_model) * texts.sum() + 6 * shape.layers * shape.hidden * (texts**2).sum()
    tower = weights(llava.model.vision_tower) * patches + 12 * shape.vision_layers * shape.vision_hidden * patches**2
    projector = weights(llava.model.multi_modal_projector) * shape.image_tokens
    head = 4 * shape.hidden * shape.vocabulary * float(lengths.answer[chosen].sum())
    return float(language + head + pictures * (tower + projector))
