"""Speed of vit_classify, each figure beside what it is to be compared with, in one run.

    python benchmarks/vit.py          # ViT-B/32 of random weights, on the GPU if there is one
    python benchmarks/vit.py --images ~/data/dtd/images --json vit.json

1. A training step (forward and backward) of PEFT LoRA, MoSLoRA and GOAT over the same of the frozen tower, whose
   backward is the gradient with respect to the input activations: what no adapter can avoid.
2. Pictures per second and core: from the cache against PIL + torchvision, on real JPEG files.
3. The tower with split attention against open_clip's own.
On a GPU also pictures per second of training, the share of the peak FLOP/s, and the memory.

Both sides are warmed up and take turns; the table holds medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from measure import METHODS, Row, device_of, environment, machine_options, medians, peak_flops, show, step_rows
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from vit_input import input_rows

from common.adapters import balance_loss
from common.config import AdapterConfig, Method, Precision
from vit_classify.attention import split_attention
from vit_classify.data import DeviceTransform
from vit_classify.head import ZeroShotHead
from vit_classify.model import VitClassifier, prepare_training
from vit_classify.objective import ClassificationObjective

CLASSES = 100


# -- 1 and 3: the tower


def random_tower(model: str) -> Any:
    """open_clip's vision tower of an architecture, random weights."""
    small = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    torch.manual_seed(0)
    return open_clip.CLIP(**{**open_clip.get_model_config(model), "text_cfg": small}).visual


def classifier_for(tower: Any, method: Method | None, precision: Precision, device: torch.device) -> VitClassifier:
    """A copy of the tower with a zero-shot head, ready to be trained; without a method it is frozen."""
    head = ZeroShotHead(100 * F.normalize(torch.randn(CLASSES, tower.output_dim), dim=-1), [""] * CLASSES, [])
    classifier = VitClassifier(copy.deepcopy(tower), head, image_size=tower.image_size[0]).to(device)
    prepare_training(classifier, AdapterConfig(method or "linear_probe"), precision)
    if precision == "bf16":
        for module in classifier.modules():
            if isinstance(module, nn.MultiheadAttention):  # its packed weight is in no nn.Linear
                module.to(torch.bfloat16)
    if method is None:
        # the gradient starts behind the embedding, so that the backward ends where an adapter's does
        classifier.tower.get_submodule("ln_pre").register_forward_hook(
            lambda module, args, out: out.detach().requires_grad_()
        )
    return classifier.train()


def steps_of(
    classifier: VitClassifier, pixel_values: Tensor, labels: Tensor
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward alone, and forward with backward."""

    def forward() -> None:
        with torch.no_grad():
            classifier(pixel_values)

    def step() -> None:
        loss = F.cross_entropy(classifier(pixel_values), labels) + balance_loss(classifier)
        loss.backward()
        classifier.zero_grad(set_to_none=True)

    return forward, step


def tower_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Sections 1 and 3."""
    packed = random_tower(args.model)
    split: Any = split_attention(copy.deepcopy(packed))
    size = packed.image_size[0]
    pixel_values = torch.randn(args.batch, 3, size, size, device=device)
    labels = torch.arange(args.batch, device=device) % CLASSES
    tasks: dict[str, Callable[[], None]] = {}
    frozen = classifier_for(split, None, args.precision, device)
    tasks["forward"], tasks["frozen"] = steps_of(frozen, pixel_values, labels)
    own = classifier_for(packed, None, args.precision, device)
    tasks["packed forward"], tasks["packed"] = steps_of(own, pixel_values, labels)
    for method in METHODS:
        tasks[method] = steps_of(classifier_for(split, method, args.precision, device), pixel_values, labels)[1]
    took = medians(tasks, args.repeats, device)

    def row(what: str, name: str, over: str) -> Row:
        return Row(what, took[name] * 1e3, "ms", took[name] / took[over], "open_clip's own", "≤ 1")

    rows = step_rows(took, METHODS)
    rows.append(row("split attention, forward", "forward", "packed forward"))
    rows.append(row("split attention, forward+backward", "frozen", "packed"))
    return rows


# -- on a GPU


def training_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Whole optimizer steps from uint8 pictures on the device."""
    tower: Any = split_attention(random_tower(args.model))
    size = tower.image_size[0]
    images = torch.randint(0, 256, (args.batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.arange(args.batch, device=device) % CLASSES
    peak = args.peak or peak_flops(torch.cuda.get_device_name(device), args.precision)
    rows = []
    for method in METHODS:
        classifier = classifier_for(tower, method, args.precision, device)
        transform = DeviceTransform(size, classifier.mean, classifier.std)
        objective = ClassificationObjective(classifier, transform).to(device)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0, fused=True)

        def step(objective: nn.Module = objective, optimizer: torch.optim.Optimizer = optimizer) -> None:
            (objective(images=images, labels=labels)["loss"] + balance_loss(objective)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        counter = FlopCounterMode(display=False)
        with counter:
            step()
        torch.cuda.reset_peak_memory_stats(device)
        seconds = medians({method: step}, args.repeats, device)[method]
        rows.append(Row(f"{method} training", args.batch / seconds, "pictures/s"))
        flops = counter.get_total_flops() / seconds
        share, over = (flops / peak, "peak") if peak else (None, "")
        rows.append(Row(f"{method} training", flops / 1e12, "TFLOP/s", share, over))
        rows.append(Row(f"{method} memory", torch.cuda.max_memory_allocated(device) / 2**20, "MiB"))
    return rows


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="ViT-B-32-quickgelu", help="an open_clip architecture; its weights are random"
    )
    parser.add_argument("--batch", type=int, default=256 if cuda else 8)
    parser.add_argument("--repeats", type=int, default=20 if cuda else 7)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16" if cuda else "float32")
    parser.add_argument("--images", type=Path, help="a folder of pictures; none given: drawn ones")
    parser.add_argument("--pictures", type=int, default=64, help="how many of them")
    parser.add_argument("--peak", type=float, help="the GPU's dense FLOP/s, where it is not known here")
    parser.add_argument("--only", choices=("towers", "input"), help="leave the rest out")
    machine_options(parser, threads="torch's threads in the towers; the input path always has one")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = device_of(args)
    sections: dict[str, list[Row]] = {}
    try:
        if args.only != "input":
            sections["steps and attention"] = tower_rows(args, device)
        if args.only != "towers":
            sections["input path, one core"] = input_rows(args.images, args.pictures, args.repeats, device)
        if device.type == "cuda" and args.only != "input":
            sections["training on the GPU"] = training_rows(args, device)
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"--batch {args.batch} does not fit into the GPU's memory; use a smaller one") from error
    settings = f"{args.model}, batch {args.batch}, {args.precision}, {args.repeats} repeats"
    line = f"{settings}; {environment(device)}"
    show(line, sections, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
