"""How strongly an adapter acts, as diffusers asks it of a tuner's layer; both of our layers have these as methods."""

from __future__ import annotations

from typing import Any


def set_scale(layer: Any, adapter: str, scale: float) -> None:
    """Let an adapter act `scale` times as strongly as trained, a residual included."""
    if adapter in layer.specs:
        layer.scaling[adapter] = scale * layer.specs[adapter].scaling


def scale_layer(layer: Any, scale: float) -> None:
    """Multiply the strength of the active adapters."""
    for adapter in layer.active_adapters:
        if adapter in layer.scaling:
            layer.scaling[adapter] *= scale


def unscale_layer(layer: Any, scale: float | None = None) -> None:
    """Divide the strength of the active adapters by `scale`; None or 0: restore the trained strength."""
    for adapter in layer.active_adapters:
        if adapter in layer.scaling:
            trained = layer.specs[adapter].scaling
            layer.scaling[adapter] = layer.scaling[adapter] / scale if scale else trained
