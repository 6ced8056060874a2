"""`open_data`: prompts, embeddings and the report of what was found."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from dreambooth.config import ModelConfig, TextEncoderConfig, TrainConfig
from dreambooth.data import embeddings, open_data
from dreambooth.data.embeddings import cut_off
from dreambooth.model import SdxlBase, encode_prompts, load_model
from tests.dreambooth.data.conftest import Recipe, drawn
from tests.dreambooth.tiny import END, TEXT_TOKENS, make_tokenizer


@torch.no_grad()
def test_embeddings_are_those_of_the_model(base: SdxlBase, recipe: Recipe) -> None:
    sample = open_data(base, recipe()).samples[(0, 0)]
    expected = encode_prompts(base, ["a photo of ikat robot"])
    assert torch.equal(sample["embeds"], expected.embeds[0])
    assert torch.equal(sample["pooled"], expected.pooled[0])


def test_every_picture_has_its_own_caption_filled_in(base: SdxlBase, recipe: Recipe, folder: Path) -> None:
    (folder / "0.txt").write_text("{token} the {class} waves")
    (folder / "3.txt").write_text("a dance")
    data = open_data(base, recipe(captions=True, train=TrainConfig(max_steps=1, batch_size=5)))
    assert data.report.prompts == {"ikat the robot waves": 1, "a photo of ikat robot": 3, "a dance": 1}
    expected = encode_prompts(base, ["ikat the robot waves", "a dance"]).embeds
    for index, embeds in zip((0, 3), expected, strict=True):
        # 1e-5: encoded beside another prompt
        torch.testing.assert_close(data.samples[(0, index)]["embeds"], embeds, rtol=1e-5, atol=1e-5)


def test_each_prompt_is_encoded_once(
    base: SdxlBase, recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    true = embeddings.encode_prompts
    monkeypatch.setattr(
        embeddings, "encode_prompts", lambda base, prompts: asked.extend(prompts) or true(base, prompts)
    )
    (folder / "0.txt").write_text("a dance")
    for _ in range(2):
        open_data(base, recipe(captions=True))
    assert sorted(asked) == ["a dance", "a photo of ikat robot"]
    base.release(text_encoders=True)
    open_data(base, recipe(captions=True))


def test_another_tokenizer_is_another_cache_of_prompts(base: SdxlBase, recipe: Recipe, tmp_path: Path) -> None:
    one = open_data(base, recipe()).samples[(0, 0)]["embeds"]
    make_tokenizer(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    ids["i"], ids["k"] = ids["k"], ids["i"]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    other = CLIPTokenizer.from_pretrained(str(tmp_path), model_max_length=TEXT_TOKENS, pad_token=END)
    changed = replace(base, tokenizers=(other, other))
    assert not torch.equal(one, open_data(changed, recipe()).samples[(0, 0)]["embeds"])


def test_another_precision_is_another_cache_of_prompts(tiny_model: Path, base: SdxlBase, recipe: Recipe) -> None:
    one = open_data(base, recipe()).samples[(0, 0)]["embeds"]
    other = open_data(load_model(ModelConfig(name=str(tiny_model)), precision="bf16"), recipe()).samples[(0, 0)]
    assert not torch.equal(one, other["embeds"])
    assert other["embeds"].dtype == torch.float32


@pytest.mark.parametrize("train_text", [False, True])
def test_a_prompt_of_more_than_77_tokens_is_counted_and_shows_what_is_cut(
    base: SdxlBase, recipe: Recipe, train_text: bool
) -> None:
    long = "x" * 40 + " {class} " + "y" * 40  # each letter is a token of the tiny model
    report = open_data(base, recipe(prompt=long, text_encoder=TextEncoderConfig(train=train_text))).report
    ((prompt, end),) = report.cut.items()
    assert prompt == "x" * 40 + " robot " + "y" * 40
    assert end.replace(" ", "") == "y" * 10  # 40 + 5 + 30 and the two tokens of start and end
    assert "1 prompt of more than 77 tokens, cut at the end" in str(report)
    assert "y" * 10 in str(report).replace(" ", "")


def test_a_prompt_of_77_tokens_is_whole(base: SdxlBase) -> None:
    assert cut_off(base.tokenizers, "x" * 75) == ""
    assert cut_off(base.tokenizers, "x" * 76) != ""


def test_the_report_counts_and_names_everything(base: SdxlBase, recipe: Recipe, folder: Path) -> None:
    drawn(8, 12).save(folder / "small.png")
    shutil.copy(folder / "0.png", folder / "twin.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    drawn(20, 20, seed=5).save(folder / "turned.jpg", exif=exif)
    layer = drawn(20, 20).convert("RGBA")
    layer.putalpha(7)
    layer.save(folder / "glass.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8")
    (folder / "notes.md").write_text("")
    report = open_data(base, recipe()).report
    text = str(report)
    for line in (
        "subject         robot, a robot",
        f"pictures        9 in {folder}",
        "  left out      broken.jpg: ",
        "  passed over   1 that are no pictures: notes.md",
        "  1 of them     smaller than data.resolution=16: enlarged (small.png of 8x12)",
        "  1 of them     the same file as 0.png: it counts twice (twin.png)",
        "  1 of them     turned upright, as its EXIF data say (turned.jpg)",
        "  1 of them     transparent: laid on white (glass.png)",
        "prompt          'a photo of ikat robot' for 9",
    ):
        assert line in text, line
    assert report.counts == {"pictures": 9}
    assert [name for name, _ in report.skipped] == ["broken.jpg"]
    kept = json.loads(report.to_json())
    assert kept["content"] == report.content
    assert kept["skipped"][0][0] == "broken.jpg"


def test_content_tells_other_pictures_and_captions_apart_and_nothing_else(
    base: SdxlBase, recipe: Recipe, folder: Path
) -> None:
    first = open_data(base, recipe()).report.content
    (folder / "notes.md").write_text("")
    assert open_data(base, recipe()).report.content == first
    (folder / "0.txt").write_text("a dance")
    assert open_data(base, recipe(captions=True)).report.content != first
    (folder / "0.png").unlink()
    assert open_data(base, recipe()).report.content != first


def test_samples_can_be_sent_to_workers_without_their_pictures(base: SdxlBase, recipe: Recipe) -> None:
    samples = open_data(base, recipe()).samples
    content = pickle.dumps(samples)
    assert len(content) < 4000
    assert torch.equal(pickle.loads(content)[(0, 3)]["mean"], samples[(0, 3)]["mean"])


@pytest.mark.shared_data
def test_real_photographs(base: SdxlBase, recipe: Recipe, shared_data: Path) -> None:
    for name, class_word, count in (("backpack_dog", "backpack", 5), ("cat2", "cat", 5), ("duck_toy", "toy", 4)):
        path = str(shared_data / "dreambooth")
        data = open_data(base, recipe(path=path, subject=name, class_word=None, crop="random", flip=True))
        assert data.report.counts == {"pictures": count}
        assert data.report.prompts == {f"a photo of ikat {class_word}": count}
        assert not data.report.pictures.findings.remarks
        sample = data.samples[(0, 0)]
        assert sample["time_ids"].tolist() == [512, 512, 0, 0, 16, 16]
        assert sample["mean"].isfinite().all()
