"""What ships by name: the characters' folders, and a base that stock diffusers opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from dreambooth.config import DataConfig, ModelConfig
from dreambooth.data.prompts import read_prompts
from dreambooth.data.subjects import open_subject, subject_names
from dreambooth.demo.architecture import RARE, WORDS, make_tokenizer
from dreambooth.demo.builtin import model_path, subject_path
from dreambooth.demo.characters import CHARACTERS, PICTURES, PROMPTS
from dreambooth.demo.encoder import load_encoder
from dreambooth.demo.pretrain import LOG
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES
from dreambooth.generate import PictureJob, generate
from dreambooth.model import encode_prompts, load_model


@pytest.mark.parametrize("name", ["builtin:drawn-sdlx", "builtin:sdxl"])
def test_an_unknown_model_is_an_error_that_names_the_known_one(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.name=.*does not ship with mosgoat.*drawn-sdxl"):
        model_path(name)


def test_an_unknown_character_is_an_error_that_names_a_near_one() -> None:
    with pytest.raises(UserError, match=r"no such character.*violet_cat"):
        subject_path("builtin:drawn-subject:violet_kat")
    with pytest.raises(UserError, match=r"data\.path=builtin:drawn-subjects does not ship"):
        subject_path("builtin:drawn-subjects")


def test_the_characters_have_the_form_of_the_published_set() -> None:
    root = subject_path("builtin:drawn-subject")
    told = read_prompts(root / "dataset" / "prompts_and_classes.txt")
    assert told.classes == {name: figure for name, (figure, _) in CHARACTERS.items()}
    assert told.live_prompts == told.object_prompts
    assert len(told.object_prompts) == len(PROMPTS)
    assert sorted(subject_names("builtin:drawn-subject")) == sorted(CHARACTERS)
    for name in CHARACTERS:
        subject = open_subject(DataConfig(path=f"builtin:drawn-subject:{name}", resolution=32))
        assert len(subject.pictures) == PICTURES
        assert subject.class_word == CHARACTERS[name][0]
        assert not subject.findings.skipped
        assert not subject.findings.ignored


def test_characters_are_drawn_once(tmp_path: Path) -> None:
    file = subject_path("builtin:drawn-subject:teal_dog", str(tmp_path)) / "00.png"
    before = file.stat().st_mtime_ns
    assert subject_path("builtin:drawn-subject", str(tmp_path)) / "dataset" / "teal_dog" / "00.png" == file
    assert file.stat().st_mtime_ns == before


def test_every_word_is_one_token_and_the_tokenizer_comes_out_the_same() -> None:
    tokenizer = make_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
    base = load_model(ModelConfig(name="builtin:drawn-sdxl"))
    for shipped in base.tokenizers:
        assert shipped.get_vocab() == tokenizer.get_vocab()


def test_the_shipped_base_was_built_by_the_script_and_is_small() -> None:
    folder = model_path("drawn-sdxl")
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    parameters = sum(line["parameters"] for line in log if "module" in line)
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 4
    assert abs(sum(file.stat().st_size for file in files) - 2 * parameters) < 200_000  # float16
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 8 * 2**20
    last = {line["stage"]: line for line in log if "stage" in line}
    assert last["vae"]["step"] == last["vae"]["of"]
    assert last["vae"]["loss"] < 0.05
    losses = [line["loss"] for line in log if line.get("stage") == "unet"]
    assert last["unet"]["step"] == last["unet"]["of"]
    assert losses[-1] < 0.5 * losses[0]


def test_different_prompts_are_pooled_to_different_vectors() -> None:
    base = load_model(ModelConfig(name="builtin:drawn-sdxl"))
    prompts = ["a photo of a red cat", "a photo of a blue cat", "a photo of ikat cat", "a photo of sks cat"]
    pooled = encode_prompts(base, prompts).pooled
    assert torch.cdist(pooled, pooled).add(100 * torch.eye(len(prompts))).min() > 1e-2
    assert {"ikat", "sks"} <= {*RARE}


@pytest.mark.slow
def test_the_base_draws_what_it_is_asked_for() -> None:
    base, encoder = load_model(ModelConfig(name="builtin:drawn-sdxl")), load_encoder()
    asked = [(figure, place) for figure in FIGURES for place in BACKGROUNDS]
    jobs = [PictureJob(f"a photo of a {figure} {place}", seed) for seed, (figure, place) in enumerate(asked)]
    said = encoder.read(list(generate(base, jobs, steps=20, guidance=3.0, batch_size=36)))
    figures = [FIGURES[i] for i in said.figure.argmax(1)]
    places = [BACKGROUNDS[i] for i in said.background.argmax(1)]
    # measured: all of both; chance is 6
    assert sum(one == figure for one, (figure, _) in zip(figures, asked, strict=True)) >= 33
    assert sum(one == place for one, (_, place) in zip(places, asked, strict=True)) >= 33
