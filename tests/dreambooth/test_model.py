"""SDXL opened by folder and by single file, its prompts, its adapters, and what goes wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from common.adapters import MosgoatConfig
from common.config import AdapterConfig, Precision
from common.errors import UserError
from dreambooth.config import DreamboothRecipe, ModelConfig, TextEncoderConfig, TrainConfig
from dreambooth.model import (
    SdxlBase,
    check_adapters,
    decode,
    encode_prompts,
    load_model,
    pipeline_of,
    prepare_training,
    take_adapter_off,
)
from tests.dreambooth.single_file import write_single_file
from tests.dreambooth.tiny import tiny_sdxl


def load(folder: Path, precision: Precision = "float32", **changes: object) -> SdxlBase:
    return load_model(ModelConfig(name=str(folder), **changes), precision=precision)  # type: ignore[arg-type]


def latents_of(base: SdxlBase) -> torch.Tensor:
    pipeline = pipeline_of(base)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline("a cat", latents=noise, num_inference_steps=2, output_type="latent").images


@pytest.fixture(scope="module")
def single(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(tiny_model, tmp_path_factory.mktemp("single") / "tiny.safetensors")


def test_single_file_is_the_model_of_the_folder(tiny_model: Path, single: Path) -> None:
    whole, base = load(tiny_model), load(single, config=str(tiny_model))
    assert base.fingerprint == whole.fingerprint
    assert torch.equal(latents_of(base), latents_of(whole))
    assert torch.equal(decode(base, latents_of(base)), decode(whole, latents_of(whole)))


def test_fingerprint_does_not_depend_on_precision_but_on_weights_and_prediction(
    tiny_model: Path, tiny_v_model: Path, tmp_path: Path
) -> None:
    base = load(tiny_model)
    assert load(tiny_model, "bf16").fingerprint == base.fingerprint
    others = [load(tiny_v_model), load(tiny_sdxl(tmp_path / "other", seed=2))]
    assert base.fingerprint not in [other.fingerprint for other in others]
    assert load(tiny_model, prediction_type="v_prediction").fingerprint == others[0].fingerprint


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
        ("text_encoder/model.safetensors", "text_model.embeddings.token_embedding.weight"),
    ],
)
def test_fingerprint_tells_models_apart_that_differ_in_one_number_of_a_last_row(
    tiny_model: Path, tmp_path: Path, file: str, name: str
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    tensors = load_file(other / file)
    name = name if name in tensors else name.removeprefix("text_model.")  # transformers from 5.6
    tensors[name][-1].view(-1)[-1] += 1
    save_file(tensors, other / file, {"format": "pt"})
    assert load(other).fingerprint != load(tiny_model).fingerprint


def test_only_the_vae_stays_in_float32(tiny_model: Path) -> None:
    base = load(tiny_model, "bf16")
    assert base.vae is not None
    assert base.text_encoders is not None
    assert base.vae.dtype == torch.float32
    assert {base.unet.dtype, *(encoder.dtype for encoder in base.text_encoders)} == {torch.bfloat16}


def test_another_vae_takes_the_place_of_the_models_own(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = AutoencoderKL.load_config(tiny_model / "vae")
    AutoencoderKL.from_config(config | {"scaling_factor": 0.5}).save_pretrained(tmp_path / "vae")
    base, other = load(tiny_model), load(tiny_model, vae=str(tmp_path / "vae"))
    assert other.latent_scale.factor == 0.5
    assert other.fingerprint != base.fingerprint


def test_prompts_are_encoded_as_by_the_stock_pipeline_and_long_ones_named(tiny_model: Path) -> None:
    prompts = ["a photo of a cat", "x" * 100, ""]
    encoded = encode_prompts(load(tiny_model), prompts)
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_model)
    expected = stock.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.equal(encoded.embeds, expected[0])
    assert torch.equal(encoded.pooled, expected[2])
    assert encoded.truncated == ["x" * 100]


@pytest.mark.parametrize("method", ["lora", "moslora", "goat", "dora", "lokr"])
def test_base_is_as_before_once_the_adapter_is_off(tiny_model: Path, method: str) -> None:
    base, fresh = load(tiny_model), load(tiny_model)
    recipe = DreamboothRecipe(adapter=AdapterConfig(method=method, r=8), text_encoder=TextEncoderConfig(train=True))  # type: ignore[arg-type]
    prepare_training(base, recipe)
    with torch.no_grad():
        for parameter in (p for part in base.adapters.values() for p in part.parameters() if p.requires_grad):
            parameter.add_(0.5)
    assert not torch.equal(latents_of(base), latents_of(fresh))
    take_adapter_off(base)
    assert torch.equal(latents_of(base), latents_of(fresh))
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


def test_adapters_are_float32_on_a_frozen_bf16_base_and_start_as_in_the_paper(tiny_model: Path) -> None:
    base = load(tiny_model, "bf16")
    prepare_training(base, DreamboothRecipe(adapter=AdapterConfig(method="moslora", r=4, alpha=4)))
    trained = {name: p for name, p in base.unet.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {name.split("attn")[1][2:].split(".mosgoat")[0] for name in trained} == {"to_q", "to_k", "to_v", "to_out.0"}
    starts = torch.cat([p.flatten() for name, p in trained.items() if "mosgoat_A" in name])
    assert starts.std().item() == pytest.approx(1 / 4, rel=0.05)  # some 2000 numbers
    assert abs(starts.abs().max().item()) > 3 / 4  # Gaussian: a uniform start has no tails
    mixers = [p for name, p in trained.items() if "mosgoat_mixer" in name]
    assert all(torch.allclose(mixer @ mixer.T, torch.eye(4), atol=1e-5) for mixer in mixers)
    config = base.adapters["unet"].peft_config["default"]
    assert isinstance(config, MosgoatConfig)
    assert (config.init, config.mixer_init) == ("gaussian", "orthogonal")


@pytest.mark.parametrize("text", [False, True])
def test_checkpointing_changes_no_gradient(tiny_model: Path, text: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        base = load(tiny_model)
        torch.manual_seed(0)
        recipe = DreamboothRecipe(
            adapter=AdapterConfig(method="goat", r=8, dropout=0.0),
            text_encoder=TextEncoderConfig(train=text),
            train=TrainConfig(max_steps=1, gradient_checkpointing=checkpointing),
        )
        prepare_training(base, recipe)
        assert base.unet.is_gradient_checkpointing == checkpointing
        encoded = encode_prompts.__wrapped__(base, ["a cat"])  # with gradients
        conditions = {"text_embeds": encoded.pooled, "time_ids": torch.zeros(1, 6)}
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        base.unet(latents, 3, encoded.embeds, added_cond_kwargs=conditions).sample.square().mean().backward()
        named = [(name, p) for part in base.adapters.values() for name, p in part.named_parameters() if p.requires_grad]
        gradients.append({name: p.grad for name, p in named})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's inductor needs g++")
def test_compiled_blocks_compute_the_same(tiny_model: Path) -> None:
    outputs = []
    for compiled in (False, True):
        base = load(tiny_model)
        torch.manual_seed(0)
        recipe = DreamboothRecipe(
            adapter=AdapterConfig(method="moslora", r=4, dropout=0.0), train=TrainConfig(max_steps=1, compile=compiled)
        )
        prepare_training(base, recipe)
        encoded, latents = encode_prompts(base, ["a cat"]), torch.ones(1, 4, 8, 8)
        conditions = {"text_embeds": encoded.pooled, "time_ids": torch.zeros(1, 6)}
        outputs.append(base.unet(latents, 3, encoded.embeds, added_cond_kwargs=conditions).sample.detach())
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)  # the compiler fuses sums
    blocks = [module for module in base.unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_xformers_is_used_or_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"model.attention=xformers cannot be used here .*model.attention=sdpa"):
        load(tiny_model, attention="xformers")


def remove(part: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / part)


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:2000])  # type: ignore[return-value]


def without_text_time(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text()) | {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}
    file.write_text(json.dumps(config))


def without_a_tensor(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.bias"]
    save_file(state, file, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        (folder / "unet" / name).unlink(missing_ok=True)
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("unet"), r"is not a whole SDXL pipeline: unet missing"),
        (cut("unet/diffusion_pytorch_model.safetensors"), r"cannot be opened as an SDXL model: .*fetch it again"),
        (without_a_tensor, r"unet lacks 1 tensor, such as conv_in.bias; fetch it again"),
        (without_text_time, r"another UNet than SDXL's"),
        (pickled, r"cannot be opened as an SDXL model: .*safetensors"),
        (lambda folder: (folder / "model_index.json").unlink(), r"not the folder of a pipeline: it has no model_index"),
    ],
    ids=["part missing", "cut", "tensor missing", "no SDXL", "pickle", "no index"],
)
def test_a_damaged_model_is_refused(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "nobody/no-sdxl"},
            r"nobody/no-sdxl is neither here .*`hf download nobody/no-sdxl --include .*safetensors'`",
        ),
        ({"name": "missing/folder/x"}, r"model.name=missing/folder/x: there is no such folder or file"),
        ({"name": "missing.safetensors"}, r"model.name=missing.safetensors: there is no such file"),
        ({"vae": "nobody/no-vae"}, r"model.vae=nobody/no-vae is neither here .*`hf download nobody/no-vae`"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_to_fetch_it(
    tiny_model: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(ModelConfig(**({"name": str(tiny_model)} | changes)))


def test_single_file_that_lacks_a_tensor_is_refused(tiny_model: Path, single: Path, tmp_path: Path) -> None:
    state = load_file(single)
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cut.safetensors"):
        load(tmp_path / "cut.safetensors", config=str(tiny_model))


def test_single_file_of_a_lora_is_told_from_a_model(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=r"holds no whole SDXL model.*is it a LoRA"):
        load(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("adapter", "text", "message"),
    [
        (AdapterConfig(target_modules=["to_z"]), TextEncoderConfig(), r"adapter.target_modules: 'to_z' matches no"),
        (AdapterConfig(r=64), TextEncoderConfig(), r"adapter.r=64 is larger than the smaller side of layer"),
        (
            AdapterConfig(r=4),
            TextEncoderConfig(train=True, target_modules=["to_q"]),
            r"text_encoder.target_modules: 'to_q' matches no layer",
        ),
        (AdapterConfig(r=4), TextEncoderConfig(train=True, r=32), r"text_encoder.r=32 is larger"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_told_at_once(
    tiny_model: Path, adapter: AdapterConfig, text: TextEncoderConfig, message: str
) -> None:
    base, recipe = load(tiny_model), DreamboothRecipe(adapter=adapter, text_encoder=text)
    for refuse in (check_adapters, prepare_training):
        with pytest.raises(UserError, match=message):
            refuse(base, recipe)
