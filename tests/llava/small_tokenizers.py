"""Tokenizers of the kinds that LLaVA's language models have, small enough to count their tokens by hand."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

IMAGE = "<image>"
WORDS = [
    "▁USER",
    "▁ASSISTANT",
    "USER",
    "ASSISTANT",
    "▁Hi",
    "Hi",
    "▁Yes",
    "Yes",
    "▁No",
    "user",
    "assistant",
    "▁two",
    "Bye",
]

# How LLaMA-3's tokenizer cuts a text into words.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """As transformers sees it, with `<image>` as a special token."""
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    whole.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return whole


def metaspace_bpe(scheme: str | None) -> PreTrainedTokenizerFast:
    """Like Vicuna's and InternLM2's: SentencePiece BPE with byte fallback.

    Args:
        scheme: `first` or `never`: the Metaspace pre-tokenizer's; None: the normaliser that prepends a space to every
            stretch of text (`legacy`).
    """
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for letter in ["▁", *map(chr, range(33, 127))]:
        vocab.setdefault(letter, len(vocab))
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """A SentencePiece Unigram model, whose vocabulary knows the special tokens as pieces, too."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|im_start|>", 0.0), ("<|im_end|>", 0.0)]
    pieces += [(word, -2.0) for word in WORDS] + [(letter, -9.0) for letter in ["▁", "\n", *map(chr, range(33, 127))]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens([piece for piece, _ in pieces[:5]])
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    """Like LLaMA-3's: byte-level BPE; every letter is a token but for a few words."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for word in ["user", "assistant", "Hi", "Yes", "ĠYes", "ĊĊ"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    cut = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return wrap(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
