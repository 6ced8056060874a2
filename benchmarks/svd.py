"""GOAT's start: our singular value segments beside `torch.linalg.svd`, in time and in the error of every segment.

    python benchmarks/svd.py --threads 1           # 768×768, 768×3072, 4096×4096; about three minutes of one core
    python benchmarks/svd.py --large --json svd.json

The weights are float32 with a spectrum like a trained layer's, σᵢ = i^(-1/2)·(1 - (i-1)/h), or, `ill`, with seven
decades, at whose end float32 itself ends. The error of expert j is ‖B0ʲA0ʲ - exact‖ / ‖exact‖ before the factors are
rounded to float32 (which costs 6e-8), exact being torch's float64 decomposition; `minor` is the largest error over the
segments of the smallest singular values. `one Gram matrix` is what ours would be without its second pass.

The second table takes the eigenvectors of several layers: one after another, stacked into one call, and in a pool of
threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from measure import device_of, environment, machine_options, medians
from torch import Tensor

from common.adapters.start import segment_starts, svd_segments

EXPERTS = 8
SHAPES = ["768x768", "768x3072", "768x768:ill", "4096x4096"]
Segments = tuple[Tensor, Tensor, Tensor]
Decompose = Callable[[Tensor, list[int], int], Segments]


@dataclass(frozen=True)
class Result:
    """One decomposition of one weight: median seconds, error of each expert's segment, largest error of `minor`."""

    weight: str
    by: str
    seconds: float
    ratio: float
    errors: list[float]
    minor: float


def weight_of(shape: str, device: torch.device) -> Tensor:
    """A float32 weight (out, in) for `OUTxIN`, or `OUTxIN:ill`."""
    size, _, kind = shape.partition(":")
    rows, columns = (int(part) for part in size.split("x"))
    h = min(rows, columns)
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, h, dtype=torch.float64, device=device)).Q for n in (rows, columns))
    i = torch.arange(h, dtype=torch.float64, device=device)
    sigma = 10 ** (-7 * i / max(h - 1, 1)) if kind == "ill" else (i + 1) ** -0.5 * (1 - i / h)
    return (u * sigma @ v.T).float()


def by_torch(dtype: torch.dtype) -> Decompose:
    """Segments cut out of torch's whole decomposition in `dtype`."""

    def segments(weight: Tensor, starts: list[int], width: int) -> Segments:
        u, sigma, vt = torch.linalg.svd(weight.to(dtype), full_matrices=False)
        index = torch.cat([torch.arange(start, start + width) for start in starts]).to(weight.device)
        return u[:, index].double(), sigma[index].double(), vt[index].T.double()

    return segments


def by_one_gram_matrix(weight: Tensor, starts: list[int], width: int) -> Segments:
    """Segments from the eigenvectors of one float64 Gram matrix of the smaller side, for the sake of comparison."""
    w = weight.double() if weight.shape[0] >= weight.shape[1] else weight.double().T
    vectors = torch.linalg.eigh(w.T @ w).eigenvectors.flip(-1)
    inner = vectors[:, torch.cat([torch.arange(start, start + width) for start in starts]).to(w.device)]
    outer = w @ inner
    sigma = outer.norm(dim=0)
    return (outer / sigma, sigma, inner) if weight.shape[0] >= weight.shape[1] else (inner, sigma, outer / sigma)


EXACT = "torch, float64"
METHODS: dict[str, Decompose] = {
    EXACT: by_torch(torch.float64),
    "torch, float32": by_torch(torch.float32),
    "ours": svd_segments,
    "one Gram matrix": by_one_gram_matrix,
}


def segment_errors(found: Segments, exact: Segments, width: int) -> list[float]:
    """‖UΣVᵀ - exact‖ / ‖exact‖ of each segment of `width` triplets."""
    errors = []
    for j in range(0, exact[1].numel(), width):
        (u, s, v), (u0, s0, v0) = ((t[..., j : j + width] for t in side) for side in (found, exact))
        errors.append(((u * s @ v.T - u0 * s0 @ v0.T).norm() / s0.norm()).item())
    return errors


def compare(shape: str, width: int, repeats: int, device: torch.device) -> list[Result]:
    """Every method on one weight; a large one is decomposed once, without a warm-up."""
    weight = weight_of(shape, device)
    h = min(weight.shape)
    small = h <= 1024
    starts = {rule: segment_starts(rule, h, EXPERTS, width) for rule in ("spread", "minor")}
    both = [*starts["spread"], *starts["minor"]]
    found: dict[str, Segments] = {}

    def task(name: str) -> Callable[[], None]:
        def run() -> None:
            found[name] = METHODS[name](weight, both, width)

        return run

    names = [name for name in METHODS if small or name != "one Gram matrix"]
    took = medians({name: task(name) for name in names}, repeats if small else 1, device, warm_up=int(small))
    results = []
    for name in names:
        errors = segment_errors(found[name], found[EXACT], width)
        spread, minor = errors[:EXPERTS], max(errors[EXPERTS:])
        results.append(Result(shape, name, took[name], took[name] / took[EXACT], spread, minor))
    return results


def layers_at_once(size: int, layers: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds on the clock for each of several layers (size, size), by way of taking them."""
    torch.manual_seed(0)
    weights = [torch.randn(size, size, dtype=torch.float64, device=device) for _ in range(layers)]
    grams = [weight.T @ weight for weight in weights]
    stacked = torch.stack(grams)
    workers = torch.get_num_threads()

    def alone(gram: Tensor) -> object:
        torch.set_num_threads(1)  # of this worker
        return torch.linalg.eigh(gram)

    def pool() -> None:
        with ThreadPoolExecutor(workers) as executor:
            list(executor.map(alone, grams))

    ways: dict[str, Callable[[], object]] = {
        "one after another": lambda: [torch.linalg.eigh(gram) for gram in grams],
        "stacked": lambda: torch.linalg.eigh(stacked),
        f"pool of {workers}": pool,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: seconds / layers for name, seconds in best.items()}


def as_table(results: Sequence[Result], at_once: dict[str, dict[str, float]]) -> str:
    """Two tables in markdown."""
    experts = [f"error {j + 1}" for j in range(EXPERTS)]
    lines = [["weight", "by", "time", f"÷ {EXACT}", *experts, "minor"], ["---", "---", *["---:"] * (EXPERTS + 3)]]
    for result in results:
        errors = [f"{error:.0e}" if result.by != EXACT else "" for error in (*result.errors, result.minor)]
        lines.append([result.weight, result.by, f"{result.seconds * 1e3:,.0f} ms", f"{result.ratio:.2f}", *errors])
    ways = [*next(iter(at_once.values()))]
    lines += [[], ["eigenvectors of", *(f"{way}, each" for way in ways)], ["---", *["---:"] * len(ways)]]
    for what, took in at_once.items():
        lines.append([what, *(f"{took[way] * 1e3:,.1f} ms" for way in ways)])
    return "\n".join(f"| {' | '.join(line)} |" if line else "" for line in lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, help="OUTxIN of each weight, with :ill for ill-conditioned"
    )
    parser.add_argument("--large", action="store_true", help="4096x14336 too")
    parser.add_argument("--sizes", nargs="+", type=int, default=[768], help="sides of the layers taken at once")
    parser.add_argument("--layers", type=int, default=8, help="how many of them")
    parser.add_argument("--r", type=int, default=8, help="total rank; each of the eight experts has an eighth of it")
    parser.add_argument("--repeats", type=int, default=5)
    machine_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = device_of(args)
    shapes = [*args.shapes, *(["4096x14336"] if args.large else [])]
    results = [line for shape in shapes for line in compare(shape, args.r // EXPERTS, args.repeats, device)]
    at_once = {
        f"{args.layers} layers {size}×{size}": layers_at_once(size, args.layers, args.repeats, device)
        for size in args.sizes
    }
    line = f"r={args.r}, {EXPERTS} experts, {args.repeats} repeats; {environment(device)}"
    print(f"{line}\n\n{as_table(results, at_once)}")
    if args.json:
        content = {"environment": line, "results": [asdict(result) for result in results], "at_once": at_once}
        args.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
