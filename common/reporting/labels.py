"""Methods as tables, legends and pages spell them."""

from common.config import Method

_LABELS: dict[Method, str] = {
    "full": "Full FT",
    "linear_probe": "linear probe",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "neat": "NEAT",
    "ts_mixing": "TS-Mixing",
    "moslora": "MoSLoRA",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "kasa": "KaSA",
    "flora": "FLoRA",
    "lora_fa": "LoRA-FA",
    "lora_fb": "LoRA-FB",
    "lora_dash": "LoRA-Dash",
    "molora": "MoLoRA",
    "hydralora": "HydraLoRA",
    "adamole": "AdaMoLE",
    "goat": "GOAT",
    "goat_plus": "GOAT+",
    "goat_principal": "GOAT (principal)",
    "goat_minor": "GOAT (minor)",
    "goat_random": "GOAT (random)",
    "goat_single": "GOAT (single)",
    "full_moe": "Full FT MoE",
}


def method_label(method: Method) -> str:
    """The name of a method as the papers spell it."""
    return _LABELS[method]
