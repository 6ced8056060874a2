"""`mosgoat params`: what it prints and what it refuses."""

import json
from pathlib import Path

import pytest

from common.adapters import METHODS
from common.counting.command import main
from common.errors import UserError
from tests.common.counting.conftest import LLAMA, write_config

ROOT = Path(__file__).resolve().parents[3]
# of one block of the small LLaMA, over q, k, v, up and down
INPUTS, OUTPUTS = 4 * 32 + 48, 32 + 16 + 16 + 48 + 32


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_one_method_prints_its_layers_and_sums(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--model", "clip-vit-b-32", "--method", "goat", "--r", "8")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "clip-vit-b-32: CLIP ViT-B/32, vision tower with its projection, 87 849 216 parameters"
    assert "fc2 3 072 768 12 663 552 33.33" in lines
    assert "trained 1 990 656 2.26 % of the model" in lines
    assert "2.24 % as [G] Table 1 counts, of 88 715 520" in lines
    assert "saved 13.3 MB the adapter's tensors, float32" in lines
    assert "AdamW's state 15.9 MB 31.9 MB with trained weights and gradients" in lines
    assert "adapter, forward 1.99 MFLOP 1.13 % more, as the paper counts: k of E experts" in lines
    assert "adapter, forward 6.64 MFLOP 3.76 % more, as computed here" in lines


def test_the_page_on_counting_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/counting.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("mosgoat params"))
    assert f"```\n{run(capsys, *command.split()[2:])}```\n" in page


def test_all_prints_a_row_for_every_method(capsys: pytest.CaptureFixture[str], folders: dict[str, str]) -> None:
    text = run(capsys, "--model", folders["llava"], "--method", "all", "--targets", "q_proj, v_proj")
    rows = [line.split()[0] for line in text.splitlines() if line]
    assert set(METHODS) - set(rows) == {"linear_probe"}
    assert "left out" not in text


def test_all_says_what_it_leaves_out_and_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_config(tmp_path, {**LLAMA, "num_hidden_layers": 1, "architectures": ["LlavaLess"]})
    with pytest.raises(UserError, match="transformers has no class LlavaLess"):
        main(["--model", folder, "--method", "all"])
    folder = write_config(tmp_path, {**LLAMA, "num_hidden_layers": 1})
    text = run(
        capsys, "--model", folder, "--method", "all", "--r", "12", "--targets", "q_proj", "--tokens", "3", "--json"
    )
    content = json.loads(text)
    left = content["left_out"]
    assert {"goat", "molora", "hydralora"} <= set(left)
    assert left["goat"] == "--r=12 is not a multiple of --num_experts=8; use 8, 16, 24, ..."
    assert {each["method"] for each in content["counts"]} | set(left) | {"linear_probe"} == set(METHODS)
    assert all(each["flops"]["tokens"] == 3 for each in content["counts"])


def test_json_holds_the_exact_numbers(capsys: pytest.CaptureFixture[str], folders: dict[str, str]) -> None:
    words = ("--model", folders["llama"], "--method", "molora", "--num_experts", "4", "--top_k", "1", "--json")
    (counted,) = json.loads(run(capsys, *words))["counts"]
    q = {"target": "q_proj", "in_features": 32, "out_features": 32, "layers": 2, "trainable": 2 * (8 * 64 + 4 * 32)}
    assert counted["groups"][0] == q
    assert counted["optimizer_bytes"] == 8 * counted["trainable"]
    assert counted["paper_percent"] is None
    assert counted["flops"]["adapter_paper"] == 2 * (
        2 * 2 * (2 * (32 + 32 + 16 + 16) + 32 + 48 + 48) + 8 * (4 * 32 + 48)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model clip-vit-b-32 --method goatt", "--method=goatt is unknown; did you mean goat"),
        ("--model clip --method lora", "--model=clip is neither a known model .*clip-vit-b-32"),
        ("--model clip-vit-b-32 --method lora --targets ,", "--targets names nothing"),
        ("--model clip-vit-b-32 --method lora --targets fc3", "'fc3' matches no linear layer .* did you mean fc"),
        ("--model clip-vit-b-32 --method all --targets fc3", "'fc3' matches no linear layer"),
        ("--model clip-vit-b-32 --method goat --r 12", "--r=12 is not a multiple of --num_experts=8; use 8, 16"),
        ("--model clip-vit-b-32 --method goat --top_k 9", "--top_k=9 must lie between 1 and --num_experts=8"),
        ("--model clip-vit-b-32 --method lora --top_k 2", "--top_k=2 has no effect with --method=lora"),
        ("--model clip-vit-b-32 --method lora --r 0", "--r=0 must be at least 1"),
        ("--model clip-vit-b-32 --method lora --tokens 9", "--tokens=9 has no effect on clip-vit-b-32"),
        ("--model llama-2-7b --method lora --tokens 0", "--tokens=0 must be at least 1"),
        ("--model llama-2-7b --method linear_probe", "--method=linear_probe trains nothing of the model"),
    ],
)
def test_what_cannot_be_counted_is_explained(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words.split())


def test_help_lists_models_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "sdxl-unet" in text
    assert "goat_plus" in text
