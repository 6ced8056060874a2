"""The projector's files: transformers', LLaVA's and XTuner's names for the same two linear layers."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from common.errors import UserError
from llava.model_files import LazyTensor, Weights, find_folder, read_weights

PROJECTOR = "model.multi_modal_projector."
# linear_1, linear_2 | LLaVA: mm_projector.0, mm_projector.2 | XTuner: projector.model.0, model.0
_NAMES = re.compile(
    r"(?:.*\.)?(?:multi_modal_projector\.linear_(?P<hf>[12])|mm_projector\.(?P<llava>[02])|"
    r"(?:projector\.)?model\.(?P<xtuner>[02]))\.(?P<kind>weight|bias)"
)


def read_projector(key: str, source: str, vision_width: int, text_width: int) -> Weights:
    """A projector's tensors under the names that they have in the model.

    Args:
        key: the recipe's key, for messages.
        source: file, folder or Hub id.
        vision_width: of the tower's features.
        text_width: of the language model's embeddings.

    Raises:
        UserError: it is not there, damaged, no two-layer projector, or of another width.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        path = find_folder(key, source)
    found: Weights = {}
    unknown = []
    for name, tensor in read_weights(key, path).items():
        match = _NAMES.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        index = match["hf"] or {"0": "1", "2": "2"}[match["llava"] or match["xtuner"]]
        found[f"{PROJECTOR}linear_{index}.{match['kind']}"] = tensor
    wanted = {
        f"{PROJECTOR}linear_1.weight": (text_width, vision_width),
        f"{PROJECTOR}linear_1.bias": (text_width,),
        f"{PROJECTOR}linear_2.weight": (text_width, text_width),
        f"{PROJECTOR}linear_2.bias": (text_width,),
    }
    missing = [name.removeprefix(PROJECTOR) for name in wanted if name not in found]
    if unknown or missing:
        raise UserError(
            f"{key}={source} is not a projector of two linear layers: missing {missing or 'nothing'}, not known "
            f"{sorted(unknown)[:4] or 'nothing'}; the names may be transformers' (multi_modal_projector.linear_1), "
            "LLaVA's (model.mm_projector.0) or XTuner's (model.0)"
        )
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise UserError(
                f"{key}={source} was made for another model: its {name.removeprefix(PROJECTOR)} is "
                f"{tuple(found[name].shape)}, this tower ({vision_width} wide) and language model ({text_width} wide) "
                f"need {shape}"
            )
    return found


def new_projector(vision_width: int, text_width: int) -> Weights:
    """A projector at the start of its training, as PyTorch starts linear layers; draws from the global generator."""
    layers = {"linear_1": nn.Linear(vision_width, text_width), "linear_2": nn.Linear(text_width, text_width)}
    return {
        f"{PROJECTOR}{name}.{kind}": LazyTensor.of(parameter.detach())
        for name, layer in layers.items()
        for kind, parameter in layer.named_parameters()
    }
