from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from llava.config import ModelConfig
from tests.llava.tiny import (
    HIDDEN,
    SIZES,
    TinyLlava,
    batch_of,
    change_tensors,
    copy_of,
    llama_config,
    load,
    logits_of,
    make_tokenizer,
    parts_of,
    vision_config,
)


def test_whole_model_computes_what_stock_transformers_computes_bit_by_bit(tiny_llava: TinyLlava) -> None:
    base = load(ModelConfig(name=str(tiny_llava.whole)))
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_llava.whole)  # layer -2 of three
    batch = batch_of(base)
    with torch.no_grad():
        expected = stock(**batch).logits
    assert stock.config.vision_feature_layer == -2
    assert torch.equal(logits_of(base, batch), expected)


def test_unused_last_layer_of_the_tower_is_dropped(tiny_llava: TinyLlava) -> None:
    base = load(ModelConfig(name=str(tiny_llava.whole)))
    llava = base.llava()
    assert len(llava.model.vision_tower.encoder.layers) == llava.config.vision_config.num_hidden_layers == 2
    assert llava.config.vision_feature_layer == -1


def test_parts_give_the_same_model_as_the_whole(tiny_llava: TinyLlava) -> None:
    whole, parts = load(ModelConfig(name=str(tiny_llava.whole))), load(parts_of(tiny_llava))
    batch = batch_of(whole)
    assert torch.equal(logits_of(whole, batch), logits_of(parts, batch))
    assert (whole.fingerprint, whole.projector_fingerprint) == (parts.fingerprint, parts.projector_fingerprint)


def test_a_deeper_feature_layer_drops_more_layers(tiny_llava: TinyLlava) -> None:
    base = load(parts_of(tiny_llava, feature_layer=-3))
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_llava.whole)
    batch = batch_of(base)
    with torch.no_grad():
        expected = stock(**batch, vision_feature_layer=-3).logits
    assert torch.equal(logits_of(base, batch), expected)


def test_everything_is_frozen_and_the_projector_is_float32(tiny_llava: TinyLlava) -> None:
    base = load(parts_of(tiny_llava), precision="bf16")
    assert not any(p.requires_grad for p in base.model.parameters())
    found = {name: p.dtype for name, p in base.model.named_parameters()}
    projector = {name for name in found if "multi_modal_projector" in name}
    assert all(found[name] == torch.float32 for name in projector)
    assert {found[name] for name in found.keys() - projector} == {torch.bfloat16}
    # not rounded on its way
    saved = load_file(tiny_llava.projector)["multi_modal_projector.linear_1.weight"]
    assert torch.equal(base.llava().model.multi_modal_projector.linear_1.weight, saved)


def test_picture_tokens_and_processor_agree_with_transformers(tiny_llava: TinyLlava) -> None:
    base = load(parts_of(tiny_llava))
    picture = Image.new("RGB", (60, 20), (200, 30, 30))
    found = base.processor(images=picture, text="<image>\nWhat?", return_tensors="pt")
    assert (found["input_ids"] == base.image_token_id).sum() == base.image_tokens == 4
    assert found["pixel_values"].shape == (1, 3, base.image_size, base.image_size)
    # padded above and below with (122, 116, 104), which CLIP's normalisation takes to zero within a level (1/255/0.27)
    assert found["pixel_values"][0, :, 0].abs().max() < 0.015
    assert found["pixel_values"][0, 0, 14].mean() > 1


def test_tower_may_be_a_whole_clip_model(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config(), projection_dim=8))
    state = load_file(tiny_llava.vision_tower / "model.safetensors")
    clip.vision_model.load_state_dict({key.removeprefix("vision_model."): value for key, value in state.items()})
    clip.save_pretrained(tmp_path)
    expected = load(parts_of(tiny_llava))
    base = load(parts_of(tiny_llava, vision_tower=str(tmp_path)))
    batch = batch_of(base)
    assert torch.equal(logits_of(base, batch), logits_of(expected, batch))


def test_weights_in_several_files_and_in_pickles_of_tensors_are_read(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    expected = load(parts_of(tiny_llava))
    shards, pickled = (
        copy_of(tiny_llava.language_model, tmp_path / "a"),
        copy_of(tiny_llava.vision_tower, tmp_path / "b"),
    )
    LlamaForCausalLM.from_pretrained(shards).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shards / name, tmp_path / "shards")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    base = load(parts_of(tiny_llava, language_model=str(tmp_path / "shards"), vision_tower=str(pickled)))
    batch = batch_of(base)
    assert torch.equal(logits_of(base, batch), logits_of(expected, batch))


@pytest.mark.parametrize(
    "names",
    [
        {"linear_1": "multi_modal_projector.linear_1", "linear_2": "multi_modal_projector.linear_2"},
        {"linear_1": "model.mm_projector.0", "linear_2": "model.mm_projector.2"},
        {"linear_1": "projector.model.0", "linear_2": "projector.model.2"},
        {"linear_1": "model.0", "linear_2": "model.2"},
    ],
    ids=["transformers", "llava", "xtuner", "xtuner-bare"],
)
@pytest.mark.parametrize("form", ["file", "folder", "bin", "repository"])
def test_projector_is_read_in_every_naming(
    tiny_llava: TinyLlava, tmp_path: Path, names: dict[str, str], form: str
) -> None:
    state = {}
    for key, value in load_file(tiny_llava.projector).items():
        _, layer, kind = key.split(".")
        state[f"{names[layer]}.{kind}"] = value
    if form == "bin":
        path = tmp_path / "mm_projector.bin"
        torch.save(state, path)
    else:
        path = tmp_path / ("projector/model.safetensors" if form == "repository" else "model.safetensors")
        path.parent.mkdir(exist_ok=True)
        save_file(state, path)
    base = load(parts_of(tiny_llava, projector=str(path if form in ("file", "bin") else tmp_path)))
    found = base.llava().model.multi_modal_projector.state_dict(prefix="multi_modal_projector.")
    assert all(torch.equal(found[key], value) for key, value in load_file(tiny_llava.projector).items())


def test_new_projector_is_drawn_from_the_global_generator(tiny_llava: TinyLlava) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(load(parts_of(tiny_llava, projector=None)).llava().model.multi_modal_projector.linear_1.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_full_vocabulary_grows_and_new_tokens_are_never_the_likeliest(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(())  # 380 tokens, none for a picture
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM(llama_config(len(tokenizer)))
    model.save_pretrained(folder)
    base = load(parts_of(tiny_llava, language_model=str(folder)))
    assert base.image_token_id == len(tokenizer) == 380
    head = base.llava().lm_head.weight
    assert head.shape == (384, HIDDEN)
    assert torch.equal(head[:380], model.lm_head.weight)
    hidden = torch.randn(100, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert (hidden @ head.T).argmax(-1).max() < 380


def test_tied_embeddings_stay_tied(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    LlamaForCausalLM(llama_config(381, tie_word_embeddings=True)).save_pretrained(folder)
    llava = load(parts_of(tiny_llava, language_model=str(folder))).llava()
    assert llava.lm_head.weight is llava.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        MistralConfig(**SIZES),
        MixtralConfig(**SIZES, num_local_experts=2),  # whose experts are stored one by one and stacked on loading
    ],
    ids=lambda config: config.model_type,
)
def test_other_language_models_of_llamas_build_compute_what_they_do_alone(
    tiny_llava: TinyLlava, tmp_path: Path, config: PreTrainedConfig
) -> None:
    torch.manual_seed(0)
    alone = AutoModelForCausalLM.from_config(config).eval()
    alone.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    base = load(parts_of(tiny_llava, language_model=str(tmp_path)))
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, alone(ids).logits)


def test_nf4_quantises_the_language_model_alone(tiny_llava: TinyLlava) -> None:
    pytest.importorskip("bitsandbytes")
    llava = load(parts_of(tiny_llava, quantization="nf4"), precision="bf16").llava()
    assert llava.is_quantized
    assert llava.is_loaded_in_4bit
    kinds = {name: type(module).__name__ for name, module in llava.named_modules() if hasattr(module, "in_features")}
    packed = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert packed == {name for name in kinds if name.startswith("model.language_model.")}
    state = llava.model.language_model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)


def test_nf4_parts_and_whole_quantise_alike(tiny_llava: TinyLlava) -> None:
    pytest.importorskip("bitsandbytes")
    whole = load(ModelConfig(name=str(tiny_llava.whole), quantization="nf4"), precision="bf16")
    parts = load(parts_of(tiny_llava, quantization="nf4"), precision="bf16")
    batch = batch_of(whole)
    assert torch.equal(logits_of(whole, batch), logits_of(parts, batch))


def test_attention_is_that_of_the_language_model(tiny_llava: TinyLlava) -> None:
    llava = load(parts_of(tiny_llava, attention="eager")).llava()
    assert llava.model.language_model.config._attn_implementation == "eager"
    assert llava.model.vision_tower.config._attn_implementation == "sdpa"


def test_fingerprint_tells_other_weights_apart(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")

    def scaled(state: dict[str, Tensor]) -> None:
        state["model.layers.1.mlp.up_proj.weight"] *= 1.001

    change_tensors(folder, scaled)
    assert load(parts_of(tiny_llava)).fingerprint != load(parts_of(tiny_llava, language_model=str(folder))).fingerprint
