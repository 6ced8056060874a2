"""InternLM2 as a Llama, against a float64 transcription of InternLM2's published code, and of sentencepiece's BPE.

B rows, T tokens, H query heads, G key/value heads, g = H/G, D head_dim, C hidden size.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.convert_slow_tokenizer import import_protobuf

from common.errors import UserError
from llava.convert import internlm2_config, internlm2_weights
from llava.convert_tokenizer import plain_tokenizer
from llava.model import load_model
from llava.model_files import LazyTensor
from llava.model_tokens import open_tokenizer
from tests.llava.tiny import HIDDEN, TinyLlava, parts_of

CONFIG: dict[str, Any] = {
    "model_type": "internlm2",
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "vocab_size": 50,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = width // config["num_attention_heads"]
    packed = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head_dim
    shapes = {"model.tok_embeddings.weight": (vocabulary, width), "output.weight": (vocabulary, width)}
    shapes["model.norm.weight"] = (width,)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}attention.wqkv.weight": (packed, width),
            f"{layer}attention.wo.weight": (width, width),
            f"{layer}feed_forward.w1.weight": (inner, width),
            f"{layer}feed_forward.w3.weight": (inner, width),
            f"{layer}feed_forward.w2.weight": (width, inner),
            f"{layer}attention_norm.weight": (width,),
            f"{layer}ffn_norm.weight": (width,),
        }
        if config["bias"]:
            shapes |= {f"{layer}attention.wqkv.bias": (packed,), f"{layer}attention.wo.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator) + ("norm" in name) for name, shape in shapes.items()}


def internlm2(weights: dict[str, Tensor], config: dict[str, Any], ids: Tensor) -> Tensor:
    """Logits (B, T, V) in float64, after modeling_internlm2.py (Shanghai AI Laboratory)."""
    w = {name: value.double() for name, value in weights.items()}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, per_group = config["hidden_size"] // heads, heads // groups
    rows, length = ids.shape

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def dense(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    base = float(config["rope_theta"])
    scaling, longest = config["rope_scaling"], config["max_position_embeddings"]
    if scaling and scaling["type"] == "dynamic" and length > longest:
        factor = scaling["factor"]
        base *= ((factor * length / longest) - (factor - 1)) ** (head_dim / (head_dim - 2))
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)  # (T, D/2)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def rotate(x: Tensor) -> Tensor:  # (B, T, heads, D)
        half = head_dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos[:, None] + turned * sin[:, None]

    hidden = w["model.tok_embeddings.weight"][ids]  # (B, T, C)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        x = norm(hidden, w[f"{layer}attention_norm.weight"])
        # rearrange(qkv, "b q (h gs d) -> b q h gs d", gs=2 + num_key_value_groups)
        qkv = dense(x, f"{layer}attention.wqkv").view(rows, length, groups, per_group + 2, head_dim)
        query = rotate(qkv[..., :per_group, :].reshape(rows, length, heads, head_dim))
        key, value = rotate(qkv[..., -2, :]), qkv[..., -1, :]
        out = torch.zeros(rows, length, heads, head_dim, dtype=torch.float64)
        for head in range(heads):
            scores = query[:, :, head] @ key[:, :, head // per_group].transpose(1, 2) / math.sqrt(head_dim)
            future = torch.ones(length, length).triu(1).bool()
            out[:, :, head] = scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, :, head // per_group]
        hidden = hidden + dense(out.flatten(2), f"{layer}attention.wo")
        x = norm(hidden, w[f"{layer}ffn_norm.weight"])
        gate, up = dense(x, f"{layer}feed_forward.w1"), dense(x, f"{layer}feed_forward.w3")
        hidden = hidden + dense(gate * gate.sigmoid() * up, f"{layer}feed_forward.w2")
    return norm(hidden, w["model.norm.weight"]) @ w["output.weight"].T


def converted(weights: dict[str, Tensor], config: dict[str, Any]) -> LlamaForCausalLM:
    llama_config = internlm2_config(config)
    lazy = internlm2_weights({name: LazyTensor.of(value) for name, value in weights.items()}, llama_config)
    model = LlamaForCausalLM(llama_config)
    model.load_state_dict({name: tensor[...] for name, tensor in lazy.items()})
    return model.eval()


@pytest.mark.parametrize("length", [12, 100], ids=["within", "beyond-the-trained-length"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": True}, {"rope_scaling": None, "rope_theta": 10000}, {"num_key_value_heads": 8}],
    ids=["7b", "bias", "plain-rope", "one-query-a-group"],
)
def test_converted_model_computes_what_internlm2_computes(changes: dict[str, Any], length: int) -> None:
    config = {**CONFIG, **changes}
    weights = random_weights(config)
    ids = torch.randint(0, config["vocab_size"], (2, length), generator=torch.Generator().manual_seed(1))
    expected = internlm2(weights, config, ids)
    with torch.no_grad():
        found = converted(weights, config).double()(ids).logits
    # Llama computes its norms and its angles in float32 whatever the weights are
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < (1e-6 if length < 64 else 5e-6), error


def test_splitting_qkv_in_blocks_would_be_wrong() -> None:
    # the proof above has to be able to fail: this is what a contiguous split gives
    weights = random_weights(CONFIG)
    ids = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(1))
    model = converted(weights, CONFIG)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            q, k, v = weights[f"model.layers.{i}.attention.wqkv.weight"].split([64, 16, 16])
            layer.self_attn.q_proj.weight.copy_(q)
            layer.self_attn.k_proj.weight.copy_(k)
            layer.self_attn.v_proj.weight.copy_(v)
        found = model.double()(ids).logits
    expected = internlm2(weights, CONFIG, ids)
    assert (found - expected).abs().max() / expected.abs().max() > 0.01


def test_config_without_its_sizes_or_with_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(UserError, match="lacks hidden_size"):
        internlm2_config({key: value for key, value in CONFIG.items() if key != "hidden_size"})
    with pytest.raises(UserError, match="yarn"):
        internlm2_config({**CONFIG, "rope_scaling": {"type": "yarn", "factor": 2.0}})


# -- the tokenizer -----------------------------------------------------------------------------------------

WORDS = ["▁the", "▁a", "▁red", "circle", "▁is", "▁what", "▁", "cat", "at", "ca", "he", "th", "ci", "rc", "le", "cle"]
WORDS += ["cir", "▁t", "▁w", "wh", "ha", "re", "ed", "▁r", "is", "t", "h", "e", "a", "r", "d", "c", "i", "l", "s", "w"]
UNUSED = [f"[UNUSED_TOKEN_{i}]" for i in (0, 144, 145, 146)]


def sentencepiece_model(path: Path, *, dummy_prefix: bool = False) -> list[tuple[str, float]]:
    """Write a BPE model with InternLM2's special pieces; returns its ordinary pieces with their scores."""
    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id = 0
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    scored = [(word, -float(rank)) for rank, word in enumerate(WORDS)]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, score, 1) for word, score in scored] + [(name, -99.0, 4) for name in UNUSED]
    for name, score, kind in pieces:
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = name, score, kind
    path.write_bytes(proto.SerializeToString())
    return scored


def sentencepiece_bpe(text: str, scored: list[tuple[str, float]]) -> list[str]:
    """What sentencepiece's BPE does: join the neighbours whose union scores best, the leftmost of equals."""
    scores = dict(scored)
    symbols = list(text.replace(" ", "▁"))
    while True:
        joined = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not joined:
            break
        at = -max(joined)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [piece for s in symbols for piece in ([s] if s in scores else [f"<0x{b:02X}>" for b in s.encode()])]


def internlm2_folder(folder: Path, **model: Any) -> list[tuple[str, float]]:
    folder.mkdir(exist_ok=True)
    scored = sentencepiece_model(folder / "tokenizer.model", **model)
    first = 259 + len(WORDS)
    added = {first + 2: "<|im_end|>", first + 3: "<|im_start|>", 0: "<unk>", 1: "<s>", 2: "</s>"}
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {str(i): {"content": name, "special": True} for i, name in added.items()},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return scored


@pytest.mark.parametrize("text", ["the red circle", "what is a cat", "  a  cat", "Zürich the 猫\n", "there", ""])
def test_tokenizer_splits_as_sentencepiece_does(tmp_path: Path, text: str) -> None:
    scored = internlm2_folder(tmp_path)
    tokenizer = plain_tokenizer(tmp_path)
    found = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(found) == sentencepiece_bpe(text, scored)
    assert tokenizer.decode(found) == text


def test_dummy_prefix_is_put_and_taken_away(tmp_path: Path) -> None:
    scored = internlm2_folder(tmp_path, dummy_prefix=True)
    tokenizer = plain_tokenizer(tmp_path)
    found = tokenizer.encode("the cat", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(found) == sentencepiece_bpe(" the cat", scored)
    assert tokenizer.decode(found) == "the cat"


@pytest.mark.parametrize("legacy", [True, False])
def test_legacy_decides_whether_text_behind_a_special_token_gets_a_space(tmp_path: Path, legacy: bool) -> None:
    internlm2_folder(tmp_path, dummy_prefix=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": legacy}))
    tokenizer = plain_tokenizer(tmp_path)
    found = tokenizer.convert_ids_to_tokens(tokenizer.encode("the</s>the", add_special_tokens=False))
    assert found == ["▁the", "</s>", *(["▁the"] if legacy else ["t", "he"])]


def test_llama_folder_with_tokenizer_model_alone_needs_no_sentencepiece_library(tmp_path: Path) -> None:
    scored = internlm2_folder(tmp_path, dummy_prefix=True)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "model_max_length": 4096}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = open_tokenizer("model.language_model", tmp_path)
    found = tokenizer.encode("the cat")
    assert tokenizer.convert_ids_to_tokens(found) == ["<s>", *sentencepiece_bpe(" the cat", scored)]
    assert tokenizer.model_max_length == 4096


def test_chat_tokens_take_the_ids_of_unused_pieces_and_survive_saving(tmp_path: Path) -> None:
    internlm2_folder(tmp_path)
    tokenizer = plain_tokenizer(tmp_path)
    first = 259 + len(WORDS)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert len(each) == first + 4
        assert each.encode("<|im_start|>the<|im_end|>")[0:2] == [1, first + 3]
        assert each.encode("<|im_start|>the<|im_end|>")[-1] == first + 2
        assert each.eos_token_id == 2
        assert each.decode([first + 3], skip_special_tokens=True) == ""


def test_damaged_or_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    internlm2_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xfe no protobuf")
    with pytest.raises(UserError, match="no sentencepiece"):
        plain_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"neither tokenizer.json nor"):
        plain_tokenizer(tmp_path)


def test_internlm2_folder_becomes_a_llava_whose_vocabulary_does_not_grow(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    internlm2_folder(tmp_path)
    config = {**CONFIG, "vocab_size": 259 + len(WORDS) + len(UNUSED)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = random_weights(config)
    save_file(weights, tmp_path / "model.safetensors")
    base = load_model(parts_of(tiny_llava, language_model=str(tmp_path)), template="internlm2")
    # a reserved piece became <image>; none of the chat tokens
    assert base.image_token_id == 259 + len(WORDS) + 1
    assert base.tokenizer.pad_token_id not in (base.tokenizer.eos_token_id, base.image_token_id)
    llava = base.llava()
    assert llava.lm_head.weight.shape[0] == config["vocab_size"]
    ids = torch.randint(260, config["vocab_size"] - 4, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = llava(input_ids=ids).logits
    expected = internlm2(weights, config, ids)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5  # float32
