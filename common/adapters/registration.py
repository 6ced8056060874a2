"""Makes PEFT know the tuner: the only place that touches PEFT's tables.

`peft.utils.register_peft_method` accepts names of PEFT's own enum only, so the entries are made directly.
"""

from __future__ import annotations

import peft
from packaging.version import Version
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType

from common.adapters.config import MosgoatConfig, MosgoatPeftType
from common.adapters.tuner import MosgoatModel


def register() -> None:
    """Enter the tuner type `MOSGOAT`; calling it again changes nothing."""
    own = MosgoatPeftType.MOSGOAT
    PEFT_TYPE_TO_CONFIG_MAPPING[own] = MosgoatConfig
    PEFT_TYPE_TO_TUNER_MAPPING[own] = MosgoatModel
    PEFT_TYPE_TO_PREFIX_MAPPING[own] = MosgoatModel.prefix
    # PEFT 0.19 and 0.20 save only what `list(PeftType)` holds; later ones ask the tables above
    if Version(peft.__version__) < Version("0.21") and own not in list(PeftType):
        PeftType._member_map_[own.name] = own
        PeftType._member_names_.append(own.name)
