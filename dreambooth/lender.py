"""The model of one run, or of several one after another: loaded once, parts out of the way while others work."""

from __future__ import annotations

import gc

import torch

from common.config import Precision
from dreambooth.config import ModelConfig
from dreambooth.model import SdxlBase, load_model, take_adapter_off


class Lender:
    """Has the model of the runs.

    Args:
        keeps: whether there may be another run that wants the whole model again; what one run does not need any more
            then waits on the CPU, and is given up otherwise.
    """

    def __init__(self, keeps: bool = False) -> None:
        self._keeps = keeps
        self._base: SdxlBase | None = None

    def lend(self, config: ModelConfig, precision: Precision, device: torch.device) -> SdxlBase:
        """The model, whole, frozen and without adapters; all runs ask for the same one."""
        if self._base is None:
            self._base = load_model(config, precision=precision, device=device)
        for part in (self._base.vae, *(self._base.text_encoders or ())):
            if part is not None:
                part.to(device)
        return self._base

    def put_aside(self, *, vae: bool, vae_returns: bool, text_encoders: bool) -> None:
        """Make room for the training.

        Args:
            vae: the VAE has encoded all there is.
            vae_returns: it has to decode something later.
            text_encoders: the text encoders have encoded all there is.
        """
        assert self._base is not None, "nothing is lent"
        if vae and (vae_returns or self._keeps):
            assert self._base.vae is not None, "lent whole"
            self._base.vae.to("cpu")
        if text_encoders and self._keeps:
            for encoder in self._base.text_encoders or ():
                encoder.to("cpu")
        self._base.release(
            vae=vae and not (vae_returns or self._keeps), text_encoders=text_encoders and not self._keeps
        )

    def take_back(self) -> None:
        """A run is done: the next one gets the model as it was."""
        if not self._keeps:
            self.forget()
        elif self._base is not None:
            take_adapter_off(self._base)

    def forget(self) -> None:
        """Give up the model; the next run loads it anew."""
        self._base = None
        gc.collect()  # modules refer to themselves; without this the next model needs room beside the old one
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
