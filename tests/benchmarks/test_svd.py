"""The decomposition benchmark gives every figure that it promises, and they are what it says they are."""

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def svd(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("svd")


def test_one_run_gives_time_and_error_of_every_segment(
    svd: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = "--shapes 48x64 64x48 48x48:ill --sizes 32 --layers 2 --repeats 1 --device cpu --json"
    assert svd.main([*options.split(), str(tmp_path / "svd.json")]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "svd.json").read_text())
    results = content["results"]
    assert len(results) == 3 * 4  # shapes, ways
    for result in results:
        assert result["seconds"] > 0
        assert math.isfinite(result["ratio"])
        assert len(result["errors"]) == 8
        # eight experts in 48 singular values: far apart, so that a sound decomposition errs by rounding alone
        if result["by"] in ("torch, float64", "ours"):
            assert max(*result["errors"], result["minor"]) < 1e-5
    by_one = {(result["weight"], result["by"]): result["minor"] for result in results}
    assert by_one["48x48:ill", "one Gram matrix"] > 10 * by_one["48x48:ill", "ours"]
    ways = ["one after another", "stacked", f"pool of {torch.get_num_threads()}"]
    assert list(content["at_once"]["2 layers 32×32"]) == ways
    tables = [{line.count("|") for line in table.splitlines()} for table in printed.split("\n\n")[1:]]
    assert [len(table) for table in tables] == [1, 1]


def test_the_weights_have_the_stated_spectrum(svd: ModuleType) -> None:
    device = torch.device("cpu")
    sigma = torch.linalg.svdvals(svd.weight_of("24x40", device).double())
    assert sigma.tolist() == pytest.approx([(i + 1) ** -0.5 * (1 - i / 24) for i in range(24)], rel=1e-4)
    ill = torch.linalg.svdvals(svd.weight_of("24x24:ill", device).double())
    assert ill[0].item() == pytest.approx(1, rel=1e-4)
    assert ill[12].item() == pytest.approx(10 ** (-7 * 12 / 23), rel=1e-2)  # float32 rounds the entries by 1e-8


def test_the_error_of_a_segment_is_that_of_the_product_and_ignores_signs(svd: ModuleType) -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (6, 5))
    sigma = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    assert svd.segment_errors((-u, sigma, -v), (u, sigma, v), 2) == pytest.approx([0, 0], abs=1e-15)
    assert svd.segment_errors((u, 1.1 * sigma, v), (u, sigma, v), 2) == pytest.approx([0.1, 0.1])
