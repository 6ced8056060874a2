"""What an answer depends on, in one hash: an answer is used again only for the same of all of it."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

MARK = "answered_by"  # of an output row: `mark` of its answer


def mark(model: str, prompt: Sequence[int] | str, picture: bytes = b"") -> str:
    """The hash that tells an answer from that of other weights, settings, words or pixels.

    Args:
        model: the weights in use (`llava.model_open.identity`) and all settings that the answer depends on.
        prompt: token ids, or text where the whole conversation follows from it.
        picture: the picture's content, or a hash of it; empty without one.
    """
    words = prompt if isinstance(prompt, str) else list(prompt)
    digest = xxhash.xxh3_128(f"{model} {words} ".encode())
    digest.update(picture)
    return digest.hexdigest()
