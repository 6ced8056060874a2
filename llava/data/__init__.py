"""Conversations with pictures for llava: a file → sound conversations → samples → batches."""

from llava.data.dataset import Conversations, LlavaData, open_data
from llava.data.report import DataReport
from llava.data.samples import Collate, PackedSamples, TrainSamples

__all__ = ["Collate", "Conversations", "DataReport", "LlavaData", "PackedSamples", "TrainSamples", "open_data"]
