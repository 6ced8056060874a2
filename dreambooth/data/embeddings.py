"""Prompts → what the UNet takes of them: embeddings, worked out once, or the tokens where text encoders are trained.

T tokens, D width of both encoders' embeddings side by side, P width of the pooled one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common.cache import cache_root, fingerprint_of
from dreambooth.data import store
from dreambooth.model import SdxlBase, encode_prompts, tokenize

_VERSION = 1
_AT_ONCE = 16


class Embeddings:
    """What there is for each prompt.

    Args:
        folder: of the cache.
        keys: prompt -> its file; empty where tokens are used.
        tokens: prompt -> tokens; empty where embeddings are used.
    """

    def __init__(self, folder: Path, keys: dict[str, str], tokens: dict[str, dict[str, Tensor]]) -> None:
        self._folder, self._keys, self._tokens = folder, keys, tokens

    def read(self, prompt: str) -> dict[str, Tensor]:
        """What the UNet takes of a prompt.

        Returns:
            `embeds` (T, D) and `pooled` (P,) float32, or `input_ids_1` and `input_ids_2` (T,) int64.

        Raises:
            UserError: the cache has been removed or damaged.
        """
        return self._tokens[prompt] if self._tokens else store.read(self._folder, self._keys[prompt])


def prepare_embeddings(base: SdxlBase, prompts: Iterable[str], *, cache_dir: str | None) -> Embeddings:
    """Encode the prompts that are not in the cache.

    Args:
        base: with its text encoders, where anything is missing.
        prompts: which; the same one is encoded once.
        cache_dir: the recipe's `data.cache_dir`.

    Raises:
        UserError: nothing can be written.
    """
    # unlike the VAE, the text encoders compute in the run's precision
    folder = cache_root(cache_dir) / "dreambooth" / "prompts" / f"{base.fingerprint[:32]}-{base.precision}"
    different = list(dict.fromkeys(prompts))
    tokens = tokenize(base, different)
    # by what the encoders read: a tokenizer is not among the weights that `fingerprint` tells apart
    ids = zip(different, tokens.first.tolist(), tokens.second.tolist(), strict=True)
    keys = {prompt: fingerprint_of(_VERSION, first, second)[:40] for prompt, first, second in ids}
    prompt_of = {key: prompt for prompt, key in keys.items()}

    def make(missing: list[str]) -> None:
        for first in tqdm(range(0, len(missing), _AT_ONCE), desc="encoding prompts", unit="batch", disable=None):
            part = missing[first : first + _AT_ONCE]
            with base.autocast():
                encoded = encode_prompts(base, [prompt_of[key] for key in part])
            for key, embeds, pooled in zip(part, encoded.embeds.float(), encoded.pooled.float(), strict=True):
                store.write(folder, key, {"embeds": embeds.cpu(), "pooled": pooled.cpu()})

    store.make_missing(folder, list(prompt_of), make, "prompts")
    return Embeddings(folder, keys, {})


def tokens_of(base: SdxlBase, prompts: Iterable[str]) -> Embeddings:
    """The tokens of prompts, for text encoders that are trained."""
    different = list(dict.fromkeys(prompts))
    tokens = tokenize(base, different)
    pairs = zip(different, tokens.first, tokens.second, strict=True)
    return Embeddings(Path(), {}, {prompt: {"input_ids_1": one, "input_ids_2": two} for prompt, one, two in pairs})


def cut_off(tokenizers: Sequence[Any], prompt: str) -> str:
    """The end of a prompt that the text encoders do not see, "" where it fits into their 77 tokens.

    Args:
        tokenizers: of the model; of two that cut differently, the longer end counts.
        prompt: any text.
    """
    ends = []
    for tokenizer in tokenizers:
        tokens = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        ends.append(tokenizer.decode(tokens[room:]).strip())
    return max(ends, key=len)
