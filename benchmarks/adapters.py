"""Cost of one adapted linear layer, ours against PEFT's LoRA of the same rank, in one run.

    python benchmarks/adapters.py --threads 1          # the three layers of the targets, about three minutes
    python benchmarks/adapters.py --quick --json adapters.json

Forward and backward of x (tokens, in) -> (tokens, out) with a gradient for x: the frozen layer alone, PEFT's LoRA,
MoSLoRA, GOAT with its router and residual, and GOAT written as the loop over experts that the paper's equations
suggest. In bfloat16 the base weight and x are bfloat16 and the adapters float32 under autocast, as the suite trains;
there PEFT's LoRA is also timed with bfloat16 adapters, which is faster and loses small updates. The balance loss is not
in it: a model takes it once over all layers, see `models.py`.

Saved bytes are those of the unique storages that autograd keeps for the backward, weights left out. x is among them,
although in a model it is shared with the neighbours that read it.

All are warmed up and take turns; the table holds medians and ratios of medians. Weights are random, GOAT's too: the
time does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from measure import device_of, environment, machine_options, medians, saved_bytes
from peft import get_peft_model
from torch import Tensor, nn

from common.adapters import build_config
from common.config import Precision

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
TIMED = ("frozen", "lora", "lora_bf16", "moslora", "goat", "loop")
COUNTED = ("lora", "moslora", "goat", "loop", "lora_fa")
TARGETS = {"moslora": 1.05, "goat": 1.25}
NAMES = {
    "frozen": "frozen layer",
    "lora": "PEFT LoRA",
    "lora_bf16": "PEFT LoRA, bf16 adapter",
    "moslora": "MoSLoRA",
    "goat": "GOAT",
    "loop": "GOAT as a loop",
    "lora_fa": "LoRA-FA",
}


@dataclass(frozen=True)
class Case:
    """One layer and how it is run."""

    tokens: int
    in_features: int
    out_features: int
    precision: Precision
    dropout: float

    def __str__(self) -> str:
        return f"{self.tokens} × {self.in_features} → {self.out_features}, {self.precision}, p={self.dropout:g}"


@dataclass(frozen=True)
class Result:
    """What was measured of a case: median milliseconds and saved MiB by name."""

    case: Case
    milliseconds: dict[str, float]
    saved: dict[str, float]

    def ratio(self, name: str) -> float | None:
        """Time over that of PEFT's LoRA; None where it was not measured."""
        took = self.milliseconds.get(name)
        return None if took is None else took / self.milliseconds["lora"]


class LoopGoat(nn.Module):
    """[G] eq. 9, 10 and 15 as they are printed: one expert after another, each on the tokens that chose it.

    y = W̃0 x + Σᵢ wⁱ(x)·s·BⁱAⁱ x, the residual having been subtracted from W0.

    Args:
        base: the linear layer with W̃0.
        r: total rank.
        experts: E.
        top_k: k.
        dropout: probability on x.
        scaling: s.
    """

    def __init__(self, base: nn.Linear, r: int, experts: int, top_k: int, dropout: float, scaling: float) -> None:
        super().__init__()
        self.base, self.top_k, self.scaling = base.requires_grad_(False), top_k, scaling
        device = base.weight.device
        self.router = nn.Linear(base.in_features, experts, bias=False, device=device)
        self.down = nn.ModuleList(
            nn.Linear(base.in_features, r // experts, bias=False, device=device) for _ in range(experts)
        )
        self.up = nn.ModuleList(
            nn.Linear(r // experts, base.out_features, bias=False, device=device) for _ in range(experts)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        y = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            top, chosen = self.router(x.float()).topk(self.top_k, dim=-1)  # (N, k)
        weights = top.softmax(-1)
        dropped = self.dropout(x)
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            token, place = torch.where(chosen == i)
            update = self.scaling * up(down(dropped[token])) * weights[token, place, None]
            y = y.index_add(0, token, update.to(y.dtype))
        return y


def make_layer(name: str, case: Case, r: int, device: torch.device) -> nn.Module:
    """The layer `name` of `TIMED` or `COUNTED` in training mode, with random weights."""
    torch.manual_seed(0)
    base = nn.Linear(case.in_features, case.out_features, device=device, dtype=DTYPES[case.precision])
    if name == "frozen":
        return base.requires_grad_(False)
    if name == "loop":
        return LoopGoat(base, r, experts=8, top_k=2, dropout=case.dropout, scaling=math.sqrt(3 * case.in_features / r))
    config = build_config(name.removesuffix("_bf16"), r=r, dropout=case.dropout, target_modules=["0"])
    if name == "goat":
        config.weights_saved = True  # no decomposition: the weights are drawn below
    model = get_peft_model(nn.Sequential(base), config, autocast_adapter_dtype=name != "lora_bf16")
    layer = model.base_model.model[0]
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor is not base.weight and tensor is not base.bias:
                tensor.normal_(std=0.02)
    return layer.train()


def step_of(layer: nn.Module, case: Case, device: torch.device) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """The forward, and the forward with the backward."""
    torch.manual_seed(1)
    dtype = DTYPES[case.precision]
    x = torch.randn(case.tokens, case.in_features, device=device, dtype=dtype, requires_grad=True)
    g = torch.randn(case.tokens, case.out_features, device=device, dtype=dtype)
    mixed = dtype != torch.float32

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype) if mixed else contextlib.nullcontext():
            return layer(x)

    def step() -> None:
        forward().backward(g)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return forward, step


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> Result:
    """Time and count one case."""
    tasks: dict[str, Callable[[], None]] = {}
    saved: dict[str, float] = {}
    for name in dict.fromkeys((*TIMED, *COUNTED)):
        if name == "lora_bf16" and case.precision == "float32":
            continue
        layer = make_layer(name, case, args.r, device)
        forward, step = step_of(layer, case, device)
        if name in TIMED:
            tasks[name] = step
        if name in COUNTED:
            saved[name] = saved_bytes(forward, (*layer.parameters(), *layer.buffers())) / 2**20
    took = medians(tasks, args.repeats, device, warm_up=1, enough=args.seconds)
    return Result(case, {name: seconds * 1e3 for name, seconds in took.items()}, saved)


def as_table(results: Sequence[Result]) -> str:
    """One line for each case, and the largest ratio beside its target at the end."""
    ratios = [name for name in TIMED if name != "lora"]
    head = ["layer", "PEFT LoRA", *(f"{NAMES[name]} ÷" for name in ratios), *(f"{NAMES[name]} MiB" for name in COUNTED)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for result in results:
        cells = [str(result.case), f"{result.milliseconds['lora']:,.2f} ms"]
        cells += ["" if (ratio := result.ratio(name)) is None else f"{ratio:.2f}" for name in ratios]
        lines.append([*cells, *(f"{result.saved[name]:.2f}" for name in COUNTED)])
    worst = {name: max(result.ratio(name) or 0 for result in results) for name in TARGETS}
    lines.append(["**largest**", "", *(f"{worst[name]:.2f}" if name in worst else "" for name in ratios)])
    lines.append(["**target**", "", *(f"≤ {TARGETS[name]}" if name in TARGETS else "" for name in ratios)])
    filled = [[*line, *[""] * (len(head) - len(line))] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def parse_shape(text: str) -> tuple[int, int, int]:
    """`2048x768x3072` -> tokens, in, out."""
    tokens, in_features, out_features = (int(part) for part in text.split("x"))
    return tokens, in_features, out_features


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ["2048x768x768", "2048x768x3072", "1024x4096x4096"]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="TOKENSxINxOUT of each layer")
    parser.add_argument("--precisions", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.0, 0.05])
    parser.add_argument("--r", type=int, default=8, help="total rank, a multiple of GOAT's eight experts")
    parser.add_argument("--repeats", type=int, default=50 if cuda else 15, help="timed turns, at most")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each case, beyond three turns")
    parser.add_argument("--quick", action="store_true", help="the first shape only, in a few turns")
    machine_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = device_of(args)
    if args.quick:
        args.shapes, args.repeats = args.shapes[:1], min(args.repeats, 5)
    cases = [
        Case(*parse_shape(shape), precision, dropout)
        for shape in args.shapes
        for precision in args.precisions
        for dropout in args.dropouts
    ]
    results = [measure(case, args, device) for case in cases]
    line = f"r={args.r}, at most {args.repeats} repeats; {environment(device)}"
    print(f"{line}\n\n{as_table(results)}")
    if args.json:
        content = {"environment": line, "targets": TARGETS, "results": [asdict(result) for result in results]}
        args.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
