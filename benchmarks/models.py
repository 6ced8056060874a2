"""What adapters cost in a whole model: a training step of PEFT LoRA, MoSLoRA and GOAT beside the frozen model.

    python benchmarks/models.py --threads 1        # ViT-B/32, a small LLaVA, a small SDXL UNet; about two minutes
    python benchmarks/models.py --models llava --device cuda --width 4 --batch 8

A step is forward and backward with dropout 0.05 and the balance loss. The frozen model's backward is the gradient with
respect to activations alone: what no adapter can avoid. All linear layers of the attention and, but for SDXL, of the
MLPs are adapted. LLaVA and the UNet have the published architectures at a small width; all weights are random.

All are warmed up and take turns; the table holds medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from measure import METHODS, Row, device_of, environment, machine_options, medians, show, step_rows
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from vit import CLASSES, classifier_for, random_tower, steps_of

from common.adapters import balance_loss, build_config
from common.config import Method
from vit_classify.attention import split_attention

Tasks = dict[str, Callable[[], object]]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj", "fc1", "fc2")
UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
IMAGE_TOKEN = 999


def vit_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """ViT-B/32 with split attention and a zero-shot head, as `vit.py` measures it at a larger batch."""
    tower: Any = split_attention(random_tower("ViT-B-32-quickgelu"))
    pixel_values = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.arange(args.batch, device=device) % CLASSES

    def steps(method: Method | None) -> tuple[Callable[[], None], Callable[[], None]]:
        return steps_of(classifier_for(tower, method, args.precision, device), pixel_values, labels)

    forward, frozen = steps(None)
    return {"forward": forward, "frozen": frozen, **{method: steps(method)[1] for method in METHODS}}


def llava_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """LLaVA: a CLIP tower of 6 layers, 2-layer projector, LLaMA of 6 layers; 64 picture and 128 text tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    width = args.width
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256 * width,
        intermediate_size=1024 * width,
        num_hidden_layers=6,
        num_attention_heads=4 * width,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=IMAGE_TOKEN + 1,
        hidden_size=512 * width,
        intermediate_size=1376 * width,
        num_hidden_layers=6,
        num_attention_heads=8 * width,
        num_key_value_heads=2 * width,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration(config)
    input_ids = torch.randint(0, IMAGE_TOKEN, (args.batch, 192))
    labels = input_ids.clone()
    input_ids[:, :64], labels[:, :64] = IMAGE_TOKEN, -100
    batch = {
        "input_ids": input_ids.to(device),
        "labels": labels.to(device),
        "pixel_values": torch.randn(args.batch, 3, 112, 112, device=device),
    }
    starts = ("model.vision_tower.pre_layrnorm", "model.language_model.embed_tokens")
    return tasks_of(model, lambda net: net(**batch, use_cache=False).loss, (*ATTENTION, *MLP), starts, args, device)


def sdxl_tasks(args: argparse.Namespace, device: torch.device) -> Tasks:
    """SDXL's UNet: text_time conditioning, (1, 2, 4) transformer layers, 48×48 latents, 77 text tokens.

    SDXL itself has (1, 2, 10) layers; at a small width those are too small to say anything about it.
    """
    from diffusers import UNet2DConditionModel

    width = args.width
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=48,
        block_out_channels=(32 * width, 64 * width, 128 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 4),
        attention_head_dim=(width, 2 * width, 4 * width),
        cross_attention_dim=256 * width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 64,
    )
    sample, noise = torch.randn(2, args.batch, 4, 48, 48, device=device)
    timesteps = torch.arange(args.batch, device=device)
    text = torch.randn(args.batch, 77, 256 * width, device=device)
    added = {
        "text_embeds": torch.randn(args.batch, 64, device=device),
        "time_ids": torch.full((args.batch, 6), 256.0, device=device),
    }

    def loss(net: nn.Module) -> Tensor:
        return F.mse_loss(net(sample, timesteps, text, added_cond_kwargs=added).sample.float(), noise)

    first = ("down_blocks.1.attentions.0.transformer_blocks.0.norm1",)  # behind it lies the first adapted layer
    return tasks_of(model, loss, UNET_ATTENTION, first, args, device)


def tasks_of(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    targets: Sequence[str],
    starts: Sequence[str],
    args: argparse.Namespace,
    device: torch.device,
) -> Tasks:
    """The frozen model's forward and forward+backward, and a step of each method.

    Args:
        model: with its weights in float32 on the CPU.
        loss: runs the model.
        targets: which linear layers are adapted.
        starts: the modules at whose outputs the frozen model's gradient ends.
        args: of the command line.
        device: where to run.
    """
    mixed = args.precision == "bf16"
    model = model.requires_grad_(False).to(device, torch.bfloat16 if mixed else torch.float32).train()

    def run(net: nn.Module) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            return loss(net)

    def forward() -> None:
        with torch.no_grad():
            run(frozen)

    def step_of(net: nn.Module) -> Callable[[], None]:
        def step() -> None:
            (run(net) + balance_loss(net)).backward()
            net.zero_grad(set_to_none=True)

        return step

    tasks: Tasks = {}
    for method in METHODS:
        config = build_config(method, r=args.r, dropout=0.05, target_modules=list(targets))
        adapted: Any = get_peft_model(copy.deepcopy(model), config)
        tasks[method] = step_of(adapted.train())
    frozen = model
    for name in starts:
        frozen.get_submodule(name).register_forward_hook(lambda module, args, out: out.detach().requires_grad_())
    return {"forward": forward, "frozen": step_of(frozen), **tasks}


MODELS: Mapping[str, tuple[str, Callable[[argparse.Namespace, torch.device], Tasks]]] = {
    "vit": ("ViT-B/32", vit_tasks),
    "llava": ("small LLaVA", llava_tasks),
    "sdxl": ("small SDXL UNet", sdxl_tasks),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=64 if cuda else 2)
    parser.add_argument("--width", type=int, default=4 if cuda else 1, help="times the small width of LLaVA and SDXL")
    parser.add_argument("--r", type=int, default=8, help="total rank of the adapters of LLaVA and SDXL; ViT has 8")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16" if cuda else "float32")
    parser.add_argument("--repeats", type=int, default=20 if cuda else 9, help="timed turns, at most")
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model, beyond three turns")
    machine_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = device_of(args)
    sections: dict[str, list[Row]] = {}
    for name in args.models:
        title, make = MODELS[name]
        took = medians(make(args, device), args.repeats, device, warm_up=1, enough=args.seconds)
        sections[title] = step_rows(took, METHODS)
    settings = f"batch {args.batch}, width {args.width}, r={args.r}, {args.precision}, at most {args.repeats} repeats"
    line = f"{settings}; {environment(device)}"
    show(line, sections, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
