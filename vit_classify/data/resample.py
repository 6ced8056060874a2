"""Crop and resize a batch with two matrix products, equal to Pillow's antialiased bicubic.

B: batch, H, W: canvas, S: output size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Pillow's BICUBIC (Resample.c, bicubic_filter): Keys' cubic with a = -0.5, support 2.
_A = -0.5
_SUPPORT = 2.0


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -0.5 (Keys 1981, eq. 15)."""
    x = x.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def filter_weights(start: Tensor, length: Tensor, extent: Tensor, canvas: int, size: int) -> Tensor:
    """Weights of Pillow's resize along one axis, one matrix a sample.

    Output pixel i sees the input around c = start + (i + 1/2)·s, s = length/size, through the kernel widened to
    max(s, 1) (antialiasing); input pixels beyond `extent` have no weight, and the weights sum to one.

    Args:
        start: (B,) float64, first edge of the box, in pixels of the canvas.
        length: (B,) float64, length of the box.
        extent: (B,) pixels of the canvas that belong to the picture.
        canvas: padded length of the axis.
        size: number of output pixels.

    Returns:
        (B, size, canvas) float32.
    """
    scale = (length / size)[:, None, None]  # (B, 1, 1)
    widened = scale.clamp(min=1.0)
    reach = _SUPPORT * widened
    outputs = torch.arange(size, device=start.device, dtype=torch.float64)[None, :, None]
    centre = start[:, None, None] + (outputs + 0.5) * scale  # (B, size, 1)
    # Pillow's window: from int(c - reach + 1/2) up to int(c + reach + 1/2), clipped to the picture. A box is no longer
    # than the canvas, which bounds the taps without asking the device.
    taps = 2 * math.ceil(_SUPPORT * max(canvas / size, 1.0)) + 1
    inputs = (centre - reach + 0.5).floor() + torch.arange(taps, device=start.device)  # (B, size, taps)
    last = torch.minimum((centre + reach + 0.5).floor(), extent[:, None, None])
    seen = (inputs >= 0) & (inputs < last)
    weights = torch.where(seen, cubic((inputs - centre + 0.5) / widened), 0.0)
    weights = (weights / weights.sum(dim=2, keepdim=True)).float()
    # Unseen taps go to a column of their own, which is cut off.
    columns = torch.where(seen, inputs, canvas).long()
    table = weights.new_zeros(len(start), size, canvas + 1).scatter_(2, columns, weights)
    return table[:, :, :canvas]


def crop_resize(canvas: Tensor, box: Tensor, extent: Tensor, size: int) -> Tensor:
    """Resample a box of each picture to a square.

    Args:
        canvas: (B, H, W, 3) uint8, pictures in the upper left corner.
        box: (B, 4) float64 (top, left, height, width) within the canvas.
        extent: (B, 2) int64 height and width of the pictures on the canvas.
        size: S.

    Returns:
        (B, 3, S, S) float32, whole numbers in [0, 255], within one level of Pillow's `resize`.
    """
    batch, height, width, _ = canvas.shape
    rows = filter_weights(box[:, 0], box[:, 2], extent[:, 0], height, size)  # (B, S, H)
    columns = filter_weights(box[:, 1], box[:, 3], extent[:, 1], width, size)  # (B, S, W)
    # Planes, so that both products are plain batched ones: broadcasting would copy the weights for every row.
    planes = canvas.permute(0, 3, 1, 2).float().reshape(batch, 3 * height, width)
    # Pillow resamples along the rows first and rounds to 8 bits in between.
    coarse, fine = _tf32_parts(columns)
    narrow = planes @ coarse.mT + planes @ fine.mT  # (B, 3·H, S)
    narrow = narrow.round_().clamp_(0, 255).view(batch, 3, height, size)
    coarse, fine = _tf32_parts(rows[:, None])
    wide = coarse @ narrow + fine @ narrow  # (B, 1, S, H) @ (B, 3, H, S) -> (B, 3, S, S)
    return wide.round_().clamp_(0, 255)


def _tf32_parts(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts that sum to the weights, so that products in TF32 give the same pixels as in float32.

    NVIDIA's containers, and users, switch TF32 on for a whole process; its 11 bits would change about one value
    in thirty by a level. The first part has at most 11 bits, the second is below 2⁻⁹.
    """
    coarse = (weights * 512).round_().div_(512)
    return coarse, weights - coarse
