"""The training engine: `fit` on `transformers.Trainer`, and the run directory."""

from common.training.fit import SIGTERM_STATUS, Terminated, TrainResult, fit
from common.training.order import EpochOrder, SampleKey
from common.training.processes import is_main, rank, world_size
from common.training.run import RunDirectory

__all__ = [
    "SIGTERM_STATUS",
    "EpochOrder",
    "RunDirectory",
    "SampleKey",
    "Terminated",
    "TrainResult",
    "fit",
    "is_main",
    "rank",
    "world_size",
]
