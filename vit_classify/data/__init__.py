"""Pictures for vit_classify: sources → splits → samples → batches."""

from vit_classify.data.images import DeviceTransform, EvalImages, TrainImages, collate
from vit_classify.data.splits import DataReport, Split, VitData, open_data

__all__ = [
    "DataReport",
    "DeviceTransform",
    "EvalImages",
    "Split",
    "TrainImages",
    "VitData",
    "collate",
    "open_data",
]
