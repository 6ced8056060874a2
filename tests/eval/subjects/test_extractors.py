"""DINO and CLIP as they are loaded from a folder, against the models used by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, CLIPModel, ViTModel

from common.errors import UserError
from eval.subjects import extractors
from eval.subjects.extractors import IMAGENET, OPENAI, load_clip, load_dino, to_pixels
from tests.eval.subjects.tiny import SIDE, draw, tiny_clip, tiny_dino


@pytest.fixture
def picture(tmp_path: Path) -> Image.Image:
    return Image.open(draw(tmp_path / "one.png", 7, side=50)).convert("RGB")


def test_dino_is_the_class_token_of_the_middle_in_imagenets_colours(dino: Path, picture: Image.Image) -> None:
    model = ViTModel.from_pretrained(dino).eval()
    scaled = round(SIDE * 256 / 224)
    edge = (scaled - SIDE) // 2
    image = picture.resize((scaled, scaled), Image.Resampling.BICUBIC).crop((edge, edge, edge + SIDE, edge + SIDE))
    pixels = (np.asarray(image, np.float64) / 255 - IMAGENET[0]) / IMAGENET[1]
    with torch.no_grad():
        expected = model(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)).last_hidden_state[0, 0]
    found = load_dino(str(dino)).features([picture])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)  # float32, normalised in another order


def test_what_is_in_the_cache_is_opened_without_asking_the_hub(dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Watching:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            asked.append(options["local_files_only"])
            return AutoModel.from_pretrained(name, **options)

    monkeypatch.setattr(extractors, "AutoModel", Watching)
    load_dino(str(dino))
    assert asked == [True]


def test_clip_gives_the_projected_features_of_pictures_and_texts(clip: Path, picture: Image.Image) -> None:
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    pixels = (
        np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) / 255 - OPENAI[0]
    ) / OPENAI[1]
    text = "a toy in the jungle"
    with torch.no_grad():
        out = model(
            pixel_values=torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32),
            **tokenizer([text], return_tensors="pt"),
        )
    found = load_clip(str(clip))
    assert found.clip is not None
    assert found.texts is not None
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(found.clip.features([picture])), out.image_embeds, rtol=1e-4, atol=1e-5)
    # beside a longer text it is padded, which must change nothing
    torch.testing.assert_close(unit(found.texts([text, "b" * 60]))[:1], out.text_embeds, rtol=1e-4, atol=1e-5)


def test_texts_tell_apart_and_long_ones_are_known(clip: Path) -> None:
    found = load_clip(str(clip))
    assert found.texts is not None
    one, other = found.texts(["a toy", "a dog"])
    assert (one - other).abs().max() > 1e-3
    assert not found.too_long("a dog")
    assert found.too_long("dog " * 40)
    assert found.texts(["dog " * 40]).isfinite().all()


def test_a_wide_picture_is_cropped_and_not_squeezed() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # only the middle third is white
    pixels = to_pixels([Image.fromarray(wide)], 32, 32, ((0, 0, 0), (1, 1, 1)))
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[..., 2:-2].min() == 1.0  # bicubic rings at the edges


def test_other_weights_or_another_kind_have_another_fingerprint(dino: Path, clip: Path, tmp_path: Path) -> None:
    other = tiny_dino(tmp_path / "vit", seed=9)
    prints = [
        load_dino(str(dino)).fingerprint,
        load_dino(str(other)).fingerprint,
        load_clip(str(clip)).clip.fingerprint,
    ]  # type: ignore[union-attr]
    assert len(set(prints)) == 3
    assert load_dino(str(dino)).fingerprint == prints[0]  # whatever the missing pooler was started with


def test_a_model_without_some_of_its_weights_is_refused(dino: Path, tmp_path: Path) -> None:
    broken = tiny_dino(tmp_path / "vit")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "layernorm" in name and name.endswith("weight"))
    del weights[name]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"--dino=.* is no whole .*layernorm"):
        load_dino(str(broken))


def test_a_model_that_is_not_there_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"--dino=.*nothing cannot be loaded.*hf download"):
        load_dino(str(tmp_path / "nothing"))


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_read_as_tensors_and_never_run(dino: Path, tmp_path: Path) -> None:
    # OpenAI's repository has nothing else on its main branch
    pickled = tiny_dino(tmp_path / "vit")
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    assert load_dino(str(pickled)).fingerprint == load_dino(str(dino)).fingerprint
    torch.save({**weights, "attack": Attack(tmp_path / "run")}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"--dino=.* cannot be loaded"):
        load_dino(str(pickled))
    assert not (tmp_path / "run").exists()


def test_another_kind_of_model_is_refused(dino: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--clip=.*"):
        load_clip(str(dino))
    folder = tiny_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))
    with pytest.raises(UserError, match="--dino="):
        load_dino(str(folder))
