"""DreamBooth's three measures as pure functions of features, in float64.

Ruiz et al., DreamBooth (arXiv:2208.12242), section 4.1: DINO and CLIP-I are "the average pairwise cosine similarity"
between the embeddings of generated and real pictures, CLIP-T is "the average cosine similarity between prompt and image
CLIP embeddings".

N: generated pictures. M: real pictures of the subject. D: width of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def image_similarity(generated: Tensor, real: Tensor) -> Tensor:
    """Mean cosine between each generated picture and all real ones; the mean of the result is DINO, or CLIP-I.

    Args:
        generated: (N, D) features.
        real: (M, D), M ≥ 1.

    Returns:
        (N,) float64 in [-1, 1].
    """
    # the mean of cosines is the product with the mean of the unit vectors
    return _unit(generated) @ _unit(real).mean(0)


def text_similarity(generated: Tensor, texts: Tensor) -> Tensor:
    """Cosine between each generated picture and its own prompt; the mean of the result is CLIP-T.

    Args:
        generated: (N, D) features.
        texts: (N, D), the prompts' features in the order of the pictures.

    Returns:
        (N,) float64 in [-1, 1].
    """
    assert generated.shape == texts.shape, (generated.shape, texts.shape)
    return (_unit(generated) * _unit(texts)).sum(1)


def real_similarity(real: Tensor) -> float | None:
    """Mean cosine between two different real pictures of a subject: what a perfect method would reach.

    The paper's row "Real Images" does not say whether pictures are compared with themselves; here they are not.

    Args:
        real: (M, D) features.

    Returns:
        A number in [-1, 1]; None for fewer than two pictures.
    """
    count = len(real)
    if count < 2:
        return None
    total = _unit(real).sum(0)
    return float((total @ total - count) / (count * (count - 1)))  # |Σu|² = Σ|u|² + the cosines of all pairs


def _unit(features: Tensor) -> Tensor:
    rows = features.to("cpu", torch.float64)
    length = rows.norm(dim=1, keepdim=True)
    if not (rows.isfinite().all() and (length > 0).all()):
        raise ValueError("features must be finite and not all zero; is the extractor broken?")
    return rows / length
