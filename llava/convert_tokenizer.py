"""Tokenizers that come as sentencepiece's `tokenizer.model`: Vicuna's, LLaMA-2's, InternLM2's.

They are read without the sentencepiece library, which transformers would want, and without code from the folder,
which InternLM2 brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from common.errors import UserError
from llava.model_files import read_json_object

# kinds of pieces in a sentencepiece model
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def plain_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder, from `tokenizer.json` or else from sentencepiece's `tokenizer.model`.

    Special tokens, chat template and `legacy` (whether every stretch of text gets a space in front, or only the
    first) are those of `tokenizer_config.json`; its `auto_map` is not followed.

    Raises:
        UserError: neither is there, or it cannot be read.
    """
    described = folder / "tokenizer_config.json"
    settings = read_json_object(described) if described.is_file() else {}
    if (folder / "tokenizer.json").is_file():
        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise UserError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    elif (folder / "tokenizer.model").is_file():
        backend = sentencepiece_tokenizer(
            folder / "tokenizer.model", _added_tokens(settings), legacy=settings.get("legacy") is not False
        )
    else:
        raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json nor tokenizer.model is there")
    given = {key: _content(settings.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    names: dict[str, str] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {key: name for key, name in given.items() if name}
    if backend.post_processor is None and settings.get("add_bos_token", True):
        bos = names["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    kept = {key: settings[key] for key in ("chat_template", "model_max_length") if settings.get(key)}
    if (folder / "chat_template.jinja").is_file():
        kept["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names, **kept)


def sentencepiece_tokenizer(path: Path, added: Mapping[int, AddedToken], *, legacy: bool = True) -> Tokenizer:
    """The BPE of a sentencepiece file as a fast tokenizer.

    Args:
        path: `tokenizer.model`.
        added: tokens that replace the pieces with these ids.
        legacy: whether each stretch of text between special tokens gets the space that the model puts in front, or
            only the first.

    Raises:
        UserError: the file is damaged, or no BPE model.
    """
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:
        raise UserError(f"{path} is no sentencepiece model: {error}") from error
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != 2 or not proto.pieces:
        raise UserError(f"{path} is no sentencepiece model of kind BPE, the only one that is read here")
    names = {i: added[i].content if i in added else piece.piece for i, piece in enumerate(proto.pieces)}
    vocabulary = {name: i for i, name in names.items()}
    scores = [(p.piece, p.score) for i, p in enumerate(proto.pieces) if p.type == _NORMAL and i not in added]
    unknown = names[trainer.unk_id if trainer.unk_id >= 0 else 0]
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            generate_merges(vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(normalizer, legacy)
    if normalizer.add_dummy_prefix and not legacy:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        steps + ([decoders.Strip(content=" ", left=1)] if normalizer.add_dummy_prefix else [])
    )
    own = {
        i: AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
        for i, piece in enumerate(proto.pieces)
        if piece.type in (_CONTROL, _USER_DEFINED)
    }
    # one at a time: a special and a plain token keep their kinds, and each keeps its id
    for _, token in sorted({**own, **added}.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _normalizer(spec: Any, legacy: bool) -> normalizers.Normalizer:
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and legacy:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _added_tokens(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    try:
        return {
            int(i): AddedToken(token["content"], normalized=False, special=bool(token.get("special", True)))
            for i, token in settings.get("added_tokens_decoder", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"tokenizer_config.json: added_tokens_decoder cannot be read ({error!r})") from error


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
