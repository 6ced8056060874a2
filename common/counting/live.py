"""Bytes that are alive while a piece of code runs: of real tensors, or of ones that have a shape and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from their making to their end.

    What existed before is not counted, nor what an operation uses inside and gives back. `now` and `peak` are bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def leave_out(self, tensors: Sequence[Tensor]) -> None:
        """Take these for known, so that an operation that returns them, as those in place do, adds nothing."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and note what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def norms_as_on_cuda(model: nn.Module) -> None:
    """Let layer and group normalisations compute and answer in float32, as CUDA's autocast does and the CPU's does not.

    A mode around the model would not do: it is not there when a checkpointed block is computed again.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
