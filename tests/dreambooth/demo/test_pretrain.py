"""The script that builds the demo's base, cut very short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from dreambooth.demo import pretrain
from dreambooth.demo.architecture import learn_merges
from dreambooth.demo.draw import SIDE


def build(folder: Path) -> Path:
    pretrain.pretrain(folder / "base", folder / "work", pictures=24, vae_steps=3, steps=3)
    return folder / "base"


@pytest.mark.slow
def test_a_killed_pretraining_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.Schedule.__init__, "__defaults__", (1,))  # its state is kept after every step
    whole = build(tmp_path / "whole")
    step = pretrain.Schedule.step

    def killed(self: pretrain.Schedule, number: int, *rest: object) -> None:
        if self.file.stem == "unet" and number == 2:
            raise KeyboardInterrupt
        step(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain.Schedule, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut")
    monkeypatch.setattr(pretrain.Schedule, "step", step)
    resumed = build(tmp_path / "cut")
    for file in sorted(whole.rglob("*.safetensors")):
        expected, found = load_file(file), load_file(resumed / file.relative_to(whole))
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), file

    opened = StableDiffusionXLPipeline.from_pretrained(resumed)
    assert opened.scheduler.config.prediction_type == "v_prediction"
    assert len(opened.vae.config.latents_std) == 4
    opened.set_progress_bar_config(disable=True)
    assert opened("a photo of ikat cat", num_inference_steps=1).images[0].size == (SIDE, SIDE)
    log = [json.loads(line) for line in (resumed / pretrain.LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["stage"] for line in log if "stage" in line] == ["vae", "unet"]


def test_batches_depend_on_the_step_alone() -> None:
    stock = pretrain.draw_stock(8, 1)
    whole = [(step, rows.tolist()) for step, rows, _ in pretrain.batches(stock, 2, 0, range(6))]
    rest = [(step, rows.tolist()) for step, rows, _ in pretrain.batches(stock, 2, 0, range(4, 6))]
    assert whole[4:] == rest
    assert whole != [(step, rows.tolist()) for step, rows, _ in pretrain.batches(stock, 1, 0, range(6))]


def test_a_cropped_picture_says_where_it_was_cropped() -> None:
    stock = pretrain.draw_stock(120, 3)
    crops = stock.time_ids[:, 2:4]
    assert 0.05 < (crops.sum(1) > 0).float().mean() < 0.3
    assert (stock.time_ids[:, 4:] == SIDE).all()
    assert stock.time_ids[:, 0].min() >= SIDE


def test_merges_make_every_word_one_piece() -> None:
    words = ["cat", "car", "a", "scarf"]
    merges = learn_merges(words)
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for first, second in merges:
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == (first, second):
                    pieces[at : at + 2] = [first + second]
                at += 1
        assert pieces == [word + "</w>"]
