from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from common.config import AdapterConfig
from common.errors import UserError
from llava.config import DataConfig, LlavaRecipe, ModelConfig, TowerConfig
from llava.conversation import Turn, encode_prompt, template_for
from llava.generation import generate
from llava.model import LlavaBase, load_model, load_run, prepare_training, save_merged
from tests.llava.tiny import TinyLlava, batch_of, disturb, logits_of, parts_of, recipe_of, write_run


def trained(recipe: LlavaRecipe) -> LlavaBase:
    torch.manual_seed(0)
    base = load_model(recipe.model, template=recipe.data.template, precision=recipe.train.precision)
    base = prepare_training(base, recipe)
    disturb(base.model)
    base.model.eval()
    return base


def run_of(recipe: LlavaRecipe, path: Path) -> tuple[LlavaBase, Path]:
    base = trained(recipe)
    return base, write_run(base, recipe, path / "run")


def method_recipe(model: ModelConfig, method: Any, **changes: Any) -> LlavaRecipe:
    return recipe_of(model, adapter=AdapterConfig(method=method, r=8), tower=TowerConfig(r=16), **changes)


@pytest.mark.parametrize("method", ["lora", "moslora", "goat"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_saved_run_opens_as_it_was(tiny_llava: TinyLlava, tmp_path: Path, method: Any, precision: Any) -> None:
    base, path = run_of(method_recipe(parts_of(tiny_llava), method, precision=precision), tmp_path)
    again = load_run(path)
    batch = batch_of(base)
    assert torch.equal(logits_of(again, batch), logits_of(base, batch))
    assert not any(p.requires_grad for p in again.model.parameters())
    assert (again.precision, again.template) == (precision, "llama3")


def test_saved_run_on_4_bit_opens_as_it_was(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = method_recipe(parts_of(tiny_llava, quantization="nf4"), "moslora", precision="bf16")
    base, path = run_of(recipe, tmp_path)
    batch = batch_of(base)
    assert torch.equal(logits_of(load_run(path), batch), logits_of(base, batch))


def test_run_of_a_whole_model_opens_as_it_was(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base, path = run_of(recipe_of(ModelConfig(name=str(tiny_llava.whole))), tmp_path)
    batch = batch_of(base)
    assert torch.equal(logits_of(load_run(path), batch), logits_of(base, batch))


@pytest.mark.parametrize("whole", [False, True])
def test_pretrained_projector_is_saved_and_serves_the_next_recipe(
    tiny_llava: TinyLlava, tmp_path: Path, whole: bool
) -> None:
    model = ModelConfig(name=str(tiny_llava.whole)) if whole else parts_of(tiny_llava, projector=None)
    base, path = run_of(recipe_of(model, stage="pretrain"), tmp_path)
    assert sorted(load_file(path / "projector.safetensors")) == [
        f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")
    ]
    batch = batch_of(base)
    assert torch.equal(logits_of(load_run(path), batch), logits_of(base, batch))
    following = load_model(parts_of(tiny_llava, projector=str(path / "projector.safetensors")), template="llama3")
    assert torch.equal(logits_of(following, batch), logits_of(base, batch))


def test_adapter_on_the_output_head_does_not_save_the_embeddings(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    adapter = AdapterConfig(method="lora", r=4, target_modules=["q_proj", "lm_head"])
    base, path = run_of(recipe_of(parts_of(tiny_llava), adapter=adapter), tmp_path)
    saved = load_file(path / "adapter" / "adapter_model.safetensors")
    assert any("lm_head.lora_A" in name for name in saved)
    assert not any("base_layer" in name or "embed_tokens" in name for name in saved)
    batch = batch_of(base)
    assert torch.equal(logits_of(load_run(path), batch), logits_of(base, batch))


# -- merged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "moslora", "ts_mixing", "pissa"])
def test_merged_model_opens_in_stock_transformers_and_answers_alike(
    tiny_llava: TinyLlava, tmp_path: Path, method: Any
) -> None:
    base, path = run_of(method_recipe(parts_of(tiny_llava), method), tmp_path)
    save_merged(path, tmp_path / "merged")
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    batch = batch_of(base)
    with torch.no_grad():
        found = stock(**batch).logits
    # merging adds in another order; float32
    assert (found - logits_of(base, batch)).abs().max() < 5e-5

    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    picture = Image.effect_noise((base.image_size, base.image_size), 90).convert("RGB")
    inputs = processor(images=picture, text=text, return_tensors="pt", add_special_tokens=False)
    prompt = encode_prompt(
        [Turn("human", "What is in the picture?", True)],
        template_for("llama3", base.tokenizer),
        base.tokenizer,
        image_token_id=base.image_token_id,
        image_tokens=base.image_tokens,
    )
    assert inputs["input_ids"][0].tolist() == prompt
    tokens = stock.generate(**inputs, max_new_tokens=12)
    answer = processor.decode(tokens[0, len(prompt) :], skip_special_tokens=True).strip()
    assert [answer] == generate(base, [prompt], [picture], max_new_tokens=12)


def test_merged_generation_stops_where_the_template_ends_an_answer(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base, path = run_of(recipe_of(parts_of(tiny_llava)), tmp_path)
    save_merged(path, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    ends = base.tokenizer.convert_tokens_to_ids(["<|eot_id|>", "</s>"])
    assert sorted(config["eos_token_id"]) == sorted(ends)
    assert config["suppress_tokens"] == [base.image_token_id]


@pytest.mark.parametrize("name", ["vicuna_v1", "llama3", "internlm2"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_merged_chat_template_writes_what_was_trained_on(
    tiny_llava: TinyLlava, tmp_path: Path, name: Any, rounds: int
) -> None:
    recipe = recipe_of(parts_of(tiny_llava), data=DataConfig(path="x.json", template=name), stage="pretrain")
    base, path = run_of(recipe, tmp_path)
    save_merged(path, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    turns = [Turn("human", "What is it?", True), Turn("gpt", "A red circle."), Turn("human", "How many?")]
    turns = turns[: 2 * rounds - 1]
    messages = [{"role": "user" if t.role == "human" else "assistant", "content": t.text} for t in turns]
    messages[0]["content"] = "<image>\nWhat is it?"
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found == encode_prompt(
        turns,
        template_for(name, base.tokenizer),
        base.tokenizer,
        image_token_id=base.image_token_id,
        image_tokens=1,
    )


def test_4_bit_run_is_merged_into_the_original_weights_and_says_so(
    tiny_llava: TinyLlava, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = method_recipe(parts_of(tiny_llava, quantization="nf4"), "moslora", precision="bf16")
    _, path = run_of(recipe, tmp_path)
    save_merged(path, tmp_path / "merged")
    assert "original weights" in capsys.readouterr().err
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert stock.dtype == torch.bfloat16
    # the same adapter on the base in bfloat16, without quantisation
    plain = replace(recipe, model=replace(recipe.model, quantization="none"))
    shutil.copytree(path, tmp_path / "plain")
    write_config(tmp_path / "plain", plain)
    expected = load_run(tmp_path / "plain")
    name = "language_model.layers.1.mlp.up_proj"
    layer = expected.llava().model.get_submodule(name)
    merged = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(stock.model.get_submodule(name).weight, merged.to(torch.bfloat16))


@pytest.mark.parametrize("method", ["goat", "molora"])
def test_routed_run_is_not_merged_and_says_why(tiny_llava: TinyLlava, tmp_path: Path, method: Any) -> None:
    _, path = run_of(method_recipe(parts_of(tiny_llava), method), tmp_path)
    with pytest.raises(UserError, match=f"adapter.method={method}.*weighs its experts anew for every token"):
        save_merged(path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_does_not_write_into_a_folder_in_use(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    _, path = run_of(recipe_of(parts_of(tiny_llava)), tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        save_merged(path, path)


@pytest.mark.slow
def test_merged_model_opens_in_a_process_that_knows_nothing_of_mosgoat(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base, path = run_of(recipe_of(parts_of(tiny_llava)), tmp_path)
    save_merged(path, tmp_path / "merged")
    batch = batch_of(base)
    torch.save({"batch": batch, "logits": logits_of(base, batch)}, tmp_path / "expected.pt")
    script = """
import sys, torch
from transformers import AutoProcessor, LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained("merged")
AutoProcessor.from_pretrained("merged")
saved = torch.load("expected.pt")
with torch.no_grad():
    found = model(**saved["batch"]).logits
assert (found - saved["logits"]).abs().max() < 5e-5
assert not any(name.split(".")[0] in ("llava", "common") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True, timeout=240)


# -- what is refused ---------------------------------------------------------------------------------------


def write_config(path: Path, recipe: LlavaRecipe) -> None:
    (path / "config.yaml").write_text(yaml.safe_dump(asdict(recipe)))


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the directory of a run"):
        load_run(tmp_path)


def test_run_of_another_pipeline_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("head: {}\n")
    (tmp_path / "results.json").write_text('{"task": "vit_classify"}')
    with pytest.raises(UserError, match="a run of vit_classify, not of llava"):
        load_run(tmp_path)


def test_unfinished_run_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    write_config(tmp_path, recipe_of(parts_of(tiny_llava)))
    with pytest.raises(UserError, match="the run did not finish"):
        load_run(tmp_path)


def test_run_on_another_base_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    recipe = recipe_of(parts_of(tiny_llava))
    _, path = run_of(recipe, tmp_path)
    other = shutil.copytree(tiny_llava.vision_tower, tmp_path / "tower")
    state = load_file(other / "model.safetensors")
    key = next(name for name in state if name.endswith("layers.0.mlp.fc1.weight"))
    state[key] += 0.1
    save_file(state, other / "model.safetensors")
    write_config(path, replace(recipe, model=replace(recipe.model, vision_tower=str(other))))
    with pytest.raises(UserError, match="trained on another base"):
        load_run(path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "key", "not finite"])
def test_damaged_adapter_is_refused(tiny_llava: TinyLlava, tmp_path: Path, damage: str) -> None:
    _, path = run_of(recipe_of(parts_of(tiny_llava)), tmp_path)
    file = path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        name = sorted(state)[0]
        value = state.pop(name)
        save_file(state if damage == "key" else {**state, name: value * float("nan")}, file)
    with pytest.raises(UserError, match=r"adapter_model.safetensors (is missing|is damaged)|does not fit this model"):
        load_run(path)
