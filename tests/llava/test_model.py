from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from common.adapters import METHODS, MosgoatConfig
from common.config import OPTIONS, AdapterConfig
from common.errors import UserError
from llava.config import LlavaRecipe, ModelConfig, TowerConfig
from llava.model import LlavaBase, load_model, peft_config, prepare_training
from tests.llava.tiny import TinyLlava, batch_of, disturb, logits_of, parts_of, recipe_of

LLM, TOWER, PROJECTOR = ".language_model.", ".vision_tower.", ".multi_modal_projector."


def prepared(recipe: LlavaRecipe) -> LlavaBase:
    torch.manual_seed(0)
    base = load_model(recipe.model, template=recipe.data.template, precision=recipe.train.precision)
    return prepare_training(base, recipe)


def trained_names(base: LlavaBase) -> set[str]:
    return {name for name, p in base.model.named_parameters() if p.requires_grad}


def adapted_layers(base: LlavaBase) -> set[str]:
    return {name.partition(".mosgoat_A")[0] for name in trained_names(base) if ".mosgoat_A" in name}


def test_adapters_and_projector_are_trained_and_nothing_else(tiny_llava: TinyLlava) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava)))
    assert isinstance(base.model, PeftModel)
    for name in trained_names(base):
        assert ".mosgoat_" in name or f"{PROJECTOR}modules_to_save.default." in name, name
    found = adapted_layers(base)
    assert len(found) == 2 * 7 + 2 * 6  # q, k, v, o, gate, up, down of the LLM; q, k, v, out, fc1, fc2 of the tower
    assert all(LLM in name or TOWER in name for name in found)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_trained_is_float32_whatever_the_frozen_weights_are(tiny_llava: TinyLlava, precision: Any) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava), precision=precision))
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    for name, parameter in base.model.named_parameters():
        if parameter.requires_grad or PROJECTOR in name:
            assert parameter.dtype == torch.float32, name
        else:
            assert parameter.dtype == frozen, name


def test_trained_parameters_all_get_a_gradient(tiny_llava: TinyLlava) -> None:
    # DDP stops on one that does not; the tower's last layer would be such a one
    base = prepared(recipe_of(parts_of(tiny_llava)))
    disturb(base.model)
    base.model(**batch_of(base)).logits.square().mean().backward()
    without = [n for n, p in base.model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_tower_stays_frozen_when_told_although_its_layers_have_the_same_names(tiny_llava: TinyLlava) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava), tower=TowerConfig(adapt=False)))
    assert all(LLM in name for name in adapted_layers(base))
    assert len(adapted_layers(base)) == 14


def test_tower_has_its_own_rank_alpha_and_mixer(tiny_llava: TinyLlava) -> None:
    adapter = AdapterConfig(method="moslora", r=8, alpha=16.0)
    tower = TowerConfig(r=4, alpha=2.0, mixer="identity")
    base = prepared(recipe_of(parts_of(tiny_llava), adapter=adapter, tower=tower))
    parameters = dict(base.model.named_parameters())
    ranks = {name: len(p) for name, p in parameters.items() if ".mosgoat_A" in name}
    assert {rank for name, rank in ranks.items() if LLM in name} == {8}
    assert {rank for name, rank in ranks.items() if TOWER in name} == {4}
    mixers = {name for name in parameters if ".mosgoat_mixer" in name}
    assert len(mixers) == 14
    assert all(LLM in name for name in mixers)
    llava = base.llava()
    assert llava.model.language_model.layers[0].mlp.up_proj.scaling["default"] == 2.0
    assert llava.model.vision_tower.encoder.layers[0].mlp.fc1.scaling["default"] == 0.5


def test_targets_of_each_part_are_its_own(tiny_llava: TinyLlava) -> None:
    adapter = AdapterConfig(method="moslora", r=4, target_modules=["self_attn.q_proj", "lm_head"])
    base = prepared(recipe_of(parts_of(tiny_llava), adapter=adapter, tower=TowerConfig(target_modules=["fc1"])))
    found = {name.removeprefix("base_model.model.") for name in adapted_layers(base)}
    assert found == {
        "lm_head",
        *(f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)),
        *(f"model.vision_tower.encoder.layers.{i}.mlp.fc1" for i in range(2)),
    }


@pytest.mark.parametrize(
    ("adapter", "tower", "words"),
    [
        (["q_prj"], None, ["adapter.target_modules", "'q_prj'", "the language model", "q_proj"]),
        (["fc1"], None, ["adapter.target_modules", "'fc1'", "the language model"]),
        (None, ["o_proj"], ["tower.target_modules", "'o_proj'", "the vision tower", "out_proj"]),
        (None, ["lm_head"], ["tower.target_modules", "'lm_head'", "the vision tower"]),
        (["embed_tokens"], None, ["embed_tokens is a Embedding"]),
    ],
)
def test_target_that_matches_nothing_names_its_part_and_near_names(
    tiny_llava: TinyLlava, adapter: list[str] | None, tower: list[str] | None, words: list[str]
) -> None:
    recipe = recipe_of(
        parts_of(tiny_llava),
        adapter=AdapterConfig(method="moslora", r=4, target_modules=adapter),
        tower=TowerConfig(target_modules=tower),
    )
    with pytest.raises(UserError) as caught:
        prepared(recipe)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_tower_setting_that_the_method_cannot_have_is_refused(tiny_llava: TinyLlava) -> None:
    recipe = recipe_of(parts_of(tiny_llava), adapter=AdapterConfig(method="goat", r=8), tower=TowerConfig(alpha=4.0))
    with pytest.raises(UserError, match=r"tower.alpha=4.0: adapter.method=goat cannot"):
        prepared(recipe)


def test_rank_larger_than_a_layer_is_refused(tiny_llava: TinyLlava) -> None:
    with pytest.raises(UserError, match="r=1000"):
        prepared(recipe_of(parts_of(tiny_llava), tower=TowerConfig(r=1000)))


def test_pretraining_trains_the_projector_alone(tiny_llava: TinyLlava) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava, projector=None), stage="pretrain", precision="bf16"))
    assert not isinstance(base.model, PeftModel)
    assert trained_names(base) == {
        f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }


def test_projector_can_stay_frozen(tiny_llava: TinyLlava) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava, train_projector=False)))
    assert not any(PROJECTOR in name for name in trained_names(base))


def test_methods_with_a_neutral_start_change_nothing_at_first(tiny_llava: TinyLlava) -> None:
    plain = load_model(parts_of(tiny_llava), template="llama3")
    batch = batch_of(plain)
    expected = logits_of(plain, batch)
    for method in ("lora", "moslora", "molora"):
        base = prepared(recipe_of(parts_of(tiny_llava), adapter=AdapterConfig(method=method, r=8)))
        assert torch.equal(logits_of(base, batch), expected), method


def gradients(recipe: LlavaRecipe) -> dict[str, Tensor]:
    base = prepared(recipe)
    disturb(base.model)
    base.model.train()
    base.model(**batch_of(base)).logits.square().mean().backward()
    return {name: p.grad for name, p in base.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_checkpointing_recomputes_without_changing_a_gradient(tiny_llava: TinyLlava, method: Any) -> None:
    adapter = AdapterConfig(method=method, r=8, dropout=0.0)
    plain = gradients(recipe_of(parts_of(tiny_llava), adapter=adapter))
    recomputed = gradients(recipe_of(parts_of(tiny_llava), adapter=adapter, checkpointing=True))
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_checkpointing_is_in_force_and_not_reentrant(tiny_llava: TinyLlava) -> None:
    base = prepared(recipe_of(parts_of(tiny_llava), checkpointing=True))
    layers = [*base.llava().model.language_model.layers, *base.llava().model.vision_tower.encoder.layers]
    assert all(layer.gradient_checkpointing for layer in layers)
    assert all(layer._gradient_checkpointing_func.keywords["use_reentrant"] is False for layer in layers)
    calls = []
    layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    base.model.train()
    base.model(**batch_of(base)).logits.mean().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_adapters_train_on_a_language_model_in_4_bit(tiny_llava: TinyLlava, method: Any) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = recipe_of(
        parts_of(tiny_llava, quantization="nf4"),
        adapter=AdapterConfig(method=method, r=8, dropout=0.0),
        precision="bf16",
    )
    base = prepared(recipe)
    disturb(base.model)
    base.model.train()
    batch = batch_of(base)
    ids = batch["input_ids"][0, base.image_tokens :]
    trained = [p for p in base.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(8):
        with base.autocast():
            logits = base.model(**batch).logits[0, base.image_tokens - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_method_that_cannot_work_in_4_bit_is_refused_before_training(tiny_llava: TinyLlava) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = recipe_of(
        parts_of(tiny_llava, quantization="nf4"), adapter=AdapterConfig(method="loha", r=4), precision="bf16"
    )
    with pytest.raises(UserError, match=r"adapter.method=loha does not work on a language model in 4 bit"):
        prepared(recipe)


def test_config_names_whole_paths_so_that_it_reads_alone(tiny_llava: TinyLlava) -> None:
    config = prepared(recipe_of(parts_of(tiny_llava))).model.peft_config["default"]
    assert isinstance(config, MosgoatConfig)
    assert "vision_tower" in config.target_modules
    assert config.modules_to_save == ["multi_modal_projector"]


def test_papers_counts_are_met_at_full_size() -> None:
    # [M] B.2 and DESIGN 5.2: LLaMA-3-8B with r 64 167.8M, CLIP ViT-L/14-336 with r 64 28.3M, of which the paper's
    # 24th layer gets no gradient and is dropped here
    text = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(
            LlavaConfig(text_config=text, vision_config=vision, vision_feature_layer=-1)
        )
        adapter = AdapterConfig(method="lora", r=64, alpha=128.0)
        recipe = recipe_of(ModelConfig(name="x"), adapter=adapter, tower=TowerConfig(alpha=16.0))
        model = get_peft_model(llava.requires_grad_(False), peft_config(llava, recipe))
    counts = dict.fromkeys((LLM, TOWER, PROJECTOR), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[next(part for part in counts if part in name)] += parameter.numel()
    assert counts[LLM] == 167_772_160
    assert counts[TOWER] == 28_311_552 * 23 // 24
    assert counts[PROJECTOR] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.build and name != "full_moe"])
def test_every_adapter_method_attaches_to_both_parts(tiny_llava: TinyLlava, method: Any) -> None:
    adapter = AdapterConfig(method=method, r=8, num_directions=2 if "num_directions" in OPTIONS[method] else None)
    base = prepared(recipe_of(parts_of(tiny_llava), adapter=adapter))
    disturb(base.model)
    base.model(**batch_of(base)).logits.mean().backward()
    named = {name for name, p in base.model.named_parameters() if p.grad is not None}
    assert any(LLM in name for name in named)
    assert any(TOWER in name for name in named)
    assert any(PROJECTOR in name for name in named)
