"""Methods as tables, legends and pages spell them."""

from common.config import Method

_LABELS: dict[Method, str] = {
    "full": "Full FT",
    "linear_probe": "linear probe",
    "lora": "LoRA",
    "ts_mixing": "TS-Mixing",
    "moslora": "MoSLoRA",
    "molora": "MoLoRA",
    "goat": "GOAT",
    "goat_plus": "GOAT+",
    "goat_principal": "GOAT (principal)",
    "goat_minor": "GOAT (minor)",
    "goat_random": "GOAT (random)",
}


def method_label(method: Method) -> str:
    """The name of a method as the papers spell it."""
    return _LABELS[method]
