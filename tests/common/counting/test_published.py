"""Parameter columns of the papers' tables, recomputed.

[G] Table 1 and [M] Table 4 are read from the published data, which says what of them was checked. [G] Table 4 and its
caption are typed here, and were compared with a stored copy of the paper's tables.
"""

from functools import cache

import pytest

from common.config import AdapterConfig
from common.counting import MODELS, Count, count
from common.reporting.published import load_published

# row of [G] Table 1 -> method and rank; the rows that are not the plain count are below
TABLE_1 = {
    "Full FT": ("full", 8),
    "LoRA": ("lora", 8),
    "LoRA (rank16)": ("lora", 16),
    "LoRA (rank32)": ("lora", 32),
    "PiSSA": ("pissa", 8),
    "MiLoRA": ("milora", 8),
    "MoLoRA": ("molora", 8),
    "AdaMoLE": ("adamole", 8),
    "HydraLoRA": ("hydralora", 8),
    "GOAT": ("goat", 8),
}
APART = {"DoRA", "Full FT MoE"}
TABLE_4_OF_GOAT = {
    **dict.fromkeys(("lora", "pissa", "milora", "rslora"), "4.00"),
    **dict.fromkeys(("molora", "goat"), "4.50"),
    "adamole": "4.56",
    "hydralora": "2.75",
}
# row of [M] Table 4 -> method, r, other settings
TABLE_4_OF_MOSLORA = {
    "LoRA": ("lora", 16, {}),
    "MoSLoRA": ("moslora", 16, {}),
    "FLoRA": ("flora", 16, {}),
    "DoRA": ("dora", 16, {}),
    # of these the tables of the paper give no rank; these reproduce them
    "LoHa": ("loha", 8, {}),
    "LoKr": ("lokr", 8, {}),
    "AdaLoRA": ("adalora", 8, {"init_r": 16}),
}


@cache
def counted(model: str, method: str, r: int, targets: tuple[str, ...] = (), **settings: int) -> Count:
    adapter = AdapterConfig(method=method, r=r, target_modules=list(targets) or None, **settings)  # type: ignore[arg-type]
    return count(MODELS[model], adapter, with_flops=False)


def test_every_row_of_goat_table_1_is_recomputed() -> None:
    assert set(TABLE_1) | APART == {row.name for row in load_published("goat_table1").rows}


@pytest.mark.parametrize("name", TABLE_1)
def test_percent_column_of_goat_table_1(name: str) -> None:
    printed = load_published("goat_table1").row(name).params_percent
    assert counted("clip-vit-b-32", *TABLE_1[name]).paper_percent == f"{printed:.2f}"


@pytest.mark.parametrize(
    ("model", "r", "printed", "counted_whole"),
    [("clip-vit-b-32", 8, "1.49", "1.58"), ("roberta-large", 32, "4.00", "4.06")],
)
def test_the_tables_leave_doras_magnitudes_out(model: str, r: int, printed: str, counted_whole: str) -> None:
    dora, lora = counted(model, "dora", r), counted(model, "lora", r)
    magnitudes = sum(group.layers * group.out_features for group in dora.groups)
    assert dora.trainable - magnitudes == lora.trainable
    assert lora.paper_percent == printed
    assert dora.paper_percent == counted_whole


@pytest.mark.parametrize(
    ("model", "printed", "experts_alone"), [("clip-vit-b-32", 770, "766.65"), ("roberta-large", 698, "684.00")]
)
def test_full_moe_of_the_tables_also_trains_the_rest_of_the_model(model: str, printed: int, experts_alone: str) -> None:
    ours = counted(model, "full_moe", 8)
    assert ours.paper_percent == experts_alone
    assert ours.paper is not None
    adapted = sum(group.layers * group.in_features * group.out_features for group in ours.groups)
    rest = ours.paper.parameters - adapted  # what the paper's denominator holds beside the adapted layers
    assert (ours.trainable + rest) * 100 // ours.paper.parameters == printed


@pytest.mark.parametrize("method", TABLE_4_OF_GOAT)
def test_percent_column_of_goat_table_4(method: str) -> None:
    assert counted("roberta-large", method, 32).paper_percent == TABLE_4_OF_GOAT[method]


def test_every_row_of_moslora_table_4_is_recomputed() -> None:
    assert set(TABLE_4_OF_MOSLORA) == {row.name for row in load_published("moslora_table4").rows}


@pytest.mark.parametrize("name", TABLE_4_OF_MOSLORA)
def test_parameter_column_of_moslora_table_4(name: str) -> None:
    """LLaMA-3-8B, q, k, v, up and down."""
    method, r, settings = TABLE_4_OF_MOSLORA[name]
    printed = load_published("moslora_table4").value(name, "millions")
    assert f"{counted('llama-3-8b', method, r, **settings).trainable / 1e6:.1f}" == f"{printed:.1f}"


def test_rank_64_of_the_llava_recipes() -> None:
    """DESIGN 5.2: 167.8M in LLaMA-3-8B's seven linear layers, 28.3M in the tower."""
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert counted("llama-3-8b", "lora", 64, layers).trainable == 167_772_160
    assert counted("clip-vit-l-14-336", "lora", 64).trainable == 28_311_552


def test_rank_4_of_the_dreambooth_recipes() -> None:
    """DESIGN 5.3: 560 modules with 5.806M parameters, mixers of 8 960 more."""
    moslora = counted("sdxl-unet", "moslora", 4)
    layers = sum(group.layers for group in moslora.groups)
    assert layers == 560
    assert moslora.trainable == 5_806_080 + 8_960
    assert layers * 4 * 4 == 8_960


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("clip-vit-b-32", 87_849_216),
        ("clip-vit-l-14-336", 304_293_888),
        ("llama-3-8b", 8_030_261_248),
        ("llama-2-7b", 6_738_415_616),
        ("internlm2-7b", 7_737_708_544),
        ("roberta-large", 355_359_744),
        ("sdxl-unet", 2_567_463_684),
    ],
)
def test_models_have_the_published_number_of_parameters(model: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in MODELS[model].make().parameters()) == parameters
