"""What cannot be loaded, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    GPT2Config,
    PhiConfig,
    PreTrainedConfig,
)

from common.errors import UserError
from llava.config import ModelConfig
from tests.llava.tiny import HIDDEN, SIZES, TinyLlava, change_tensors, copy_of, load, make_tokenizer, parts_of


def refusal(config: ModelConfig) -> str:
    with pytest.raises(UserError) as caught:
        load(config)
    return str(caught.value)


def test_projector_of_another_width_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    state = load_file(tiny_llava.projector)
    state["multi_modal_projector.linear_1.weight"] = torch.zeros(HIDDEN, 48)
    save_file(state, tmp_path / "p.safetensors")
    message = refusal(parts_of(tiny_llava, projector=str(tmp_path / "p.safetensors")))
    assert "made for another model" in message
    assert f"({HIDDEN}, 48)" in message


def test_file_that_is_no_projector_is_refused(tiny_llava: TinyLlava) -> None:
    message = refusal(parts_of(tiny_llava, projector=str(tiny_llava.vision_tower)))
    assert "not a projector of two linear layers" in message
    assert "embeddings.class_embedding" in message


def test_folder_that_is_no_model_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    message = refusal(parts_of(tiny_llava, language_model=str(tmp_path)))
    assert "model.language_model" in message
    assert "no config.json" in message
    assert "notes.txt" in message


def test_missing_folder_and_hub_id_offline_are_one_line(
    tiny_llava: TinyLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no such folder" in refusal(parts_of(tiny_llava, vision_tower=str(tmp_path / "absent")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("llava.model_files.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refusal(parts_of(tiny_llava, vision_tower="nobody/no-such-tower"))
    assert "hf download nobody/no-such-tower" in message
    assert str(tmp_path / "cache") in message
    assert "\n" not in message


def test_model_in_the_hubs_cache_is_found_by_its_id_without_a_network(
    tiny_llava: TinyLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("llava.model_files.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    folder = copy_of(tiny_llava.whole, repository / "snapshots" / "abc")
    base, expected = load(ModelConfig(name="somebody/tiny")), load(ModelConfig(name=str(tiny_llava.whole)))
    assert base.fingerprint == expected.fingerprint
    (folder / "model.safetensors").unlink()  # a download that was cut short
    assert "nor whole in the cache" in refusal(ModelConfig(name="somebody/tiny"))


def test_quantised_model_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    for folder in (tiny_llava.language_model, tiny_llava.whole):
        copied = copy_of(folder, tmp_path / folder.name)
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    for model in (
        parts_of(tiny_llava, language_model=str(tmp_path / "language_model")),
        ModelConfig(name=str(tmp_path / "whole")),
    ):
        assert "is quantised already" in refusal(model)


def test_truncated_safetensors_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refusal(parts_of(tiny_llava, language_model=str(folder)))
    assert str(file) in message
    assert "damaged or incomplete" in message


def test_pickle_of_code_is_not_run(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("run",))

    torch.save({"model.0.weight": Evil()}, tmp_path / "projector.bin")
    assert "pickled code is not run" in refusal(parts_of(tiny_llava, projector=str(tmp_path / "projector.bin")))


@pytest.mark.parametrize("what", ["missing", "unexpected", "mismatched"])
def test_every_key_is_accounted_for(tiny_llava: TinyLlava, tmp_path: Path, what: str) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    name = "model.layers.1.mlp.up_proj.weight"

    def change(state: dict[str, Tensor]) -> None:
        if what == "unexpected":
            state["model.layers.1.mlp.gate_up.weight"] = torch.zeros(2)
        elif what == "missing":
            del state[name]
        else:
            state[name] = torch.zeros(3, 5)

    change_tensors(folder, change)
    message = refusal(parts_of(tiny_llava, language_model=str(folder)))
    assert f"1 {what} keys" in message
    assert "layers.1.mlp." in message


def test_buffers_of_old_checkpoints_are_passed_over(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")

    def change(state: dict[str, Tensor]) -> None:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    change_tensors(folder, change)
    load(parts_of(tiny_llava, language_model=str(folder)))


def test_model_that_is_no_causal_language_model_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    message = refusal(parts_of(tiny_llava, language_model=str(tiny_llava.vision_tower)))
    assert "clip_vision_model" in message
    assert "no causal language model" in message
    BertModel(
        BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    ).save_pretrained(tmp_path / "bert")
    message = refusal(parts_of(tiny_llava, vision_tower=str(tmp_path / "bert")))
    assert "a CLIP vision model is needed" in message


def test_model_of_unknown_type_or_own_code_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": {"AutoModel": "x.Y"}}))
    assert "own code are not run" in refusal(parts_of(tiny_llava, language_model=str(folder)))


def test_whole_model_must_be_a_llava_of_transformers(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    message = refusal(ModelConfig(name=str(tiny_llava.language_model)))
    assert "of type llama" in message
    assert "model.language_model" in message
    folder = copy_of(tiny_llava.language_model, tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "llava", "mm_projector_type": "mlp2x_gelu"})
    )
    assert "LLaVA's own form" in refusal(ModelConfig(name=str(folder)))


def test_feature_layer_of_a_whole_model_is_its_own(tiny_llava: TinyLlava) -> None:
    assert "trained on layer -2" in refusal(ModelConfig(name=str(tiny_llava.whole), feature_layer=-3))
    assert "before the first" in refusal(parts_of(tiny_llava, feature_layer=-4))


def test_folder_without_tokenizer_is_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava.language_model, tmp_path / "llm")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer that can be loaded" in refusal(parts_of(tiny_llava, language_model=str(folder)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SIZES, head_dim=16), "logits are changed by final_logit_softcapping"),
        (
            GPT2Config(vocab_size=381, n_embd=HIDDEN, n_layer=1, n_head=4),
            "of type gpt2, whose embedding or output head",
        ),
        (PhiConfig(**SIZES), "of type phi, whose embedding or output head"),
    ],
    ids=["head-that-does-more", "other-names", "head-with-bias"],
)
def test_language_model_that_llava_would_compute_wrongly_is_refused(
    tiny_llava: TinyLlava, tmp_path: Path, config: PreTrainedConfig, message: str
) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert message in refusal(parts_of(tiny_llava, language_model=str(tmp_path)))
