"""What the check of a DreamBooth recipe finds without loading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.recipes import parse
from dreambooth.config import DreamboothRecipe, fill_in, recipe_problems, subject_name, with_places


def read(*words: str) -> DreamboothRecipe:
    return parse(["--data.path", "pictures", *words], DreamboothRecipe, prog="test", problems=recipe_problems)


def test_the_default_is_sound_and_the_papers_length() -> None:
    recipe = read()
    assert (recipe.train.max_steps, recipe.train.batch_size, recipe.train.schedule) == (500, 4, "constant")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--adapter.method full", "adapter.method=full is not for dreambooth"),
        ("--adapter.method full_moe", "adapter.method=full_moe is not for dreambooth"),
        ("--model.name sdxl.ckpt", r"sdxl.ckpt is a pickle, which could run any code; give its .safetensors"),
        ("--model.name x.safetensors --model.variant fp16", "model.variant=fp16 has no effect on a single file"),
        ("--model.config folder", "model.config=folder has no effect with model.name="),
        ("--model.prediction_type sample", "expected one of epsilon, v_prediction or null"),
        ("--model.attention flash", "expected one of sdpa, xformers"),
        ("--data.resolution 8", "data.resolution=8 must be at least 16"),
        ("--data.variants 0", "data.variants=0 must be at least 1"),
        ("--data.prompt {tokn}", r"data.prompt='\{tokn\}': \{tokn\} is not filled in; \{token\} and \{class\} are"),
        ("--data.num_workers -1", "data.num_workers=-1 must lie between 0 and 1024"),
        ("--data.token=", "data.token is an empty text"),
        ("--data.class_word=", "data.class_word is an empty text"),
        ("--text_encoder.r 4", "text_encoder.r=4 has no effect with text_encoder.train=False"),
        ("--text_encoder.train true --text_encoder.r 0", "text_encoder.r=0 must be at least 1"),
        ("--text_encoder.train true --text_encoder.learning_rate 0", "text_encoder.learning_rate=0.0 must be positive"),
        ("--text_encoder.train true --text_encoder.r 6 --adapter.method goat", "text_encoder.r=6 is not a multiple of"),
        ("--text_encoder.train true --adapter.method adalora", "adapter.method=adalora cannot be put on"),
        ("--prior.weight -1", "prior.weight=-1.0 must be at least 0"),
        ("--prior.path folder", "prior.path=.*folder has no effect with prior.weight=0"),
        ("--prior.prompt {token}", r"prior.prompt='\{token\}': \{token\} is not filled in; \{class\} is"),
        ("--loss.min_snr_gamma 0", "loss.min_snr_gamma=0.0 must be positive; 5 is usual"),
        ("--train.max_steps null", "neither train.epochs nor train.max_steps is given"),
        ("--train.evaluate_every 10", "train.evaluate_every=10 has no effect without validation.prompts"),
        ('--validation.prompts ["{x}"]', r"validation.prompts='\{x\}': \{x\} is not filled in"),
        ("--validation.pictures 0", "validation.pictures=0 must be at least 1"),
        ("--seed -1", "seed=-1 must not be negative"),
    ],
)
def test_impossible_values_are_named(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(*words.split())


@pytest.mark.parametrize("key", ["data.token", "data.class_word", "data.prompt", "prior.prompt"])
def test_blanks_are_no_word_and_no_prompt(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key} is an empty text"):
        read(f"--{key}", "  ")


def test_an_empty_validation_prompt_is_refused() -> None:
    with pytest.raises(UserError, match=r"validation.prompts has an empty text"):
        read("--validation.prompts", '["a {token}", " "]')


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError, match="3 problems"):
        read("--data.resolution", "8", "--prior.weight", "-1", "--seed", "-1")


def test_missing_pictures_are_told_with_the_short_option() -> None:
    with pytest.raises(UserError, match=r"data.path is missing; .*--subject DIR"):
        parse([], DreamboothRecipe, prog="test", problems=recipe_problems)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"path": "dataset/dog6"}, "dog6"),
        ({"path": "dataset", "subject": "cat2"}, "cat2"),
        ({"path": "builtin:drawn-subject:violet_cat"}, "violet_cat"),
    ],
)
def test_a_run_is_named_after_its_subject(data: dict[str, Any], name: str) -> None:
    words = [word for key, value in data.items() for word in (f"--data.{key}", value)]
    recipe = read(*words, "--seed", "2")
    assert subject_name(recipe.data) == name
    assert with_places(recipe).output == f"runs/dreambooth-{name}-lora-seed2"


def test_places_are_made_absolute_and_names_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = with_places(read("--prior.weight", "1", "--prior.path", "class", "--model.vae", "org/vae"))
    assert recipe.data.path == str(tmp_path / "pictures")
    assert recipe.prior.path == str(tmp_path / "class")
    assert recipe.model.vae == "org/vae"
    assert recipe.model.name == "stabilityai/stable-diffusion-xl-base-1.0"


def test_prompts_are_filled_in() -> None:
    assert fill_in("a {token} {class}", token="ikat", class_word="toy dog") == "a ikat toy dog"
