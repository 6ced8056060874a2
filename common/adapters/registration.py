"""Makes PEFT know our tuners: the only place that touches PEFT's tables.

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
from common.adapters.upcycled import UpcycledConfig, UpcycledModel, UpcycledPeftType


def register() -> None:
    """Enter the tuner types `MOSGOAT` and `UPCYCLED`; calling it again changes nothing."""
    for own, config, model in (
        (MosgoatPeftType.MOSGOAT, MosgoatConfig, MosgoatModel),
        (UpcycledPeftType.UPCYCLED, UpcycledConfig, UpcycledModel),
    ):
        PEFT_TYPE_TO_CONFIG_MAPPING[own] = config
        PEFT_TYPE_TO_TUNER_MAPPING[own] = model
        PEFT_TYPE_TO_PREFIX_MAPPING[own] = model.prefix
        # PEFT 0.19 and 0.20 save only what `list(PeftType)` holds; later ones ask the tables above
        if Version(peft.__version__) < Version("0.21") and own not in list(PeftType):
            PeftType._member_map_[own.name] = own
            PeftType._member_names_.append(own.name)
