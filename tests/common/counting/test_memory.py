"""`mosgoat params --memory`: counted bytes against bytes that PyTorch's profiler measured in a real step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common.adapters import attach
from common.config import AdapterConfig
from common.counting import find_model
from common.counting.command import main
from common.counting.flops import sample_inputs
from common.counting.live import LiveBytes
from common.counting.memory import Memory, Setting, memory, nf4_bytes
from common.errors import UserError
from tests.common.counting.conftest import CLIP, LLAMA, UNET, write_config

# wide enough that activations outweigh what the profiler sees of constants
WIDE = {**LLAMA, "vocab_size": 400, "hidden_size": 64, "intermediate_size": 160, "max_position_embeddings": 256}
BATCH, TOKENS, SUPERVISED = 4, 96, 24
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def measured_peak(run: Callable[[], None]) -> int:
    """Bytes that `run` holds at most beyond those it begins with, by the profiler's allocations.

    Of a first call: a second one would begin with what routers have recorded, and give it back on the way.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    results = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocations = [event for event in results if event.name() == "[memory]" and event.device_type() == DeviceType.CPU]
    now = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def real_step(folder: str, method: str, checkpointing: bool, bf16: bool) -> int:
    """What `memory` counts, done with real tensors: frozen weights, gradients in place, the head on some positions."""
    architecture = find_model(folder)
    model = architecture.build()
    model.requires_grad_(False)
    whole = attach(model, AdapterConfig(method=method, r=8, dropout=0.0), TARGETS).train()  # type: ignore[arg-type]
    if bf16:
        for parameter in whole.parameters():
            parameter.data = parameter.data if parameter.requires_grad else parameter.data.to(torch.bfloat16)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": False})
    for parameter in whole.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool)

    def run() -> None:
        marked = torch.arange(BATCH * SUPERVISED)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            loss = F.cross_entropy(model.lm_head(hidden.flatten(0, 1)[marked]).float(), marked)
            del hidden
            loss.backward()

    return measured_peak(run)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("wide"), {**WIDE, "num_hidden_layers": 3})


def counted(folder: str, method: str, device: str = "cpu", **setting: object) -> Memory:
    adapter = AdapterConfig(method=method, r=8, dropout=0.0, target_modules=TARGETS)  # type: ignore[arg-type]
    setting = {"batch_per_gpu": BATCH, "tokens": TOKENS, "supervised": SUPERVISED, **setting}
    return memory(find_model(folder), adapter, Setting(**setting), device=device)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "checkpointing", "precision"),
    [("moslora", False, "float32"), ("moslora", True, "bf16"), ("goat", False, "bf16"), ("goat", True, "float32")],
)
def test_a_counted_step_peaks_where_the_profiler_measures_it(
    wide: str, method: str, checkpointing: bool, precision: str
) -> None:
    found = counted(wide, method, checkpointing=checkpointing, precision=precision)
    # 2 %: what an operation takes and gives back inside is the profiler's to see, not ours
    assert found.step == pytest.approx(real_step(wide, method, checkpointing, precision == "bf16"), rel=0.02)
    assert 0 < found.kept < found.step
    assert 0 < found.logits < found.step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets", "method", "checkpointing"),
    [("clip", ["q_proj", "fc1"], "goat", False), ("unet", ["to_q", "to_out.0"], "moslora", True)],
)
def test_a_step_of_a_tower_and_of_a_unet_too(
    name: str, targets: list[str], method: str, checkpointing: bool, tmp_path: Path
) -> None:
    tower = {**CLIP, "hidden_size": 64, "intermediate_size": 256, "image_size": 64}
    unet = {**UNET, "sample_size": 16, "block_out_channels": [32], "cross_attention_dim": 48, "attention_head_dim": 4}
    architecture = find_model(write_config(tmp_path, {"clip": tower, "unet": unet}[name]))
    adapter = AdapterConfig(method=method, r=8, dropout=0.0, target_modules=targets)  # type: ignore[arg-type]
    setting = Setting(batch_per_gpu=4, precision="float32", checkpointing=checkpointing)
    found = memory(architecture, adapter, setting, device="cpu")
    model: Any = architecture.build().requires_grad_(False)
    whole = attach(model, adapter, targets).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    for parameter in whole.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    inputs = sample_inputs(architecture, model.config, None, batch=4)
    real = measured_peak(lambda: model(**inputs)[0].float().square().mean().backward())
    assert found.step == pytest.approx(real, rel=0.02)


def test_live_bytes_follow_real_tensors_to_their_end() -> None:
    known = torch.zeros(100)
    with LiveBytes() as live:
        live.leave_out([known])
        known.add_(1)
        kept: Tensor = known * 2
        assert live.now == 400
        view = kept.view(10, 10)
        assert live.now == 400
        gone = kept + view.flatten()
        del gone
        assert (live.now, live.peak) == (400, 800)


def test_sums_are_those_of_the_storage(wide: str) -> None:
    plain = counted(wide, "moslora")
    model = find_model(wide).make()
    weights = sum(parameter.numel() for parameter in model.parameters())
    sides = [(64, 64), (64, 32), (64, 32), (64, 160), (160, 64)]
    trained = 3 * sum(8 * (a + b) + 8 * 8 for a, b in sides)
    assert plain.trainable == trained
    held = (plain.frozen, plain.trained, plain.gradients, plain.moments)
    assert held == (2 * weights, 4 * trained, 4 * trained, 8 * trained)
    assert plain.start == plain.gathered == plain.unpacked == 0
    assert plain.total == plain.frozen + 16 * trained + plain.step
    assert counted(wide, "moslora", precision="float32").frozen == 4 * weights
    goat = counted(wide, "goat")
    assert goat.start == 4 * 3 * sum(8 * (a + b) for a, b in sides)  # A0 and B0


def test_sharding_divides_the_weights_and_several_gpus_copy_the_gradients(wide: str) -> None:
    plain, two = counted(wide, "lora"), counted(wide, "lora", gpus=2)
    shared = counted(wide, "lora", gpus=4, shard=True)
    assert (two.frozen, two.gradients) == (plain.frozen, 2 * plain.gradients)
    assert shared.frozen == -(-plain.frozen // 4)
    block = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64)  # bfloat16, with its two norms
    outside = plain.frozen - 3 * block
    assert shared.gathered == (outside + 2 * block) * 3 // 4
    assert (shared.step, shared.kept) == (plain.step, plain.kept)


def test_nf4_bytes_are_those_that_bitsandbytes_stores() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for rows, columns in ((64, 64), (96, 128), (300, 512)):
        packed, state = functional.quantize_4bit(torch.randn(rows, columns), compress_statistics=True, quant_type="nf4")
        held = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        assert nf4_bytes(rows * columns) == sum(tensor.nbytes for tensor in held)


def test_4_bit_packs_the_language_model_without_its_head(wide: str) -> None:
    plain, packed = counted(wide, "lora"), counted(wide, "lora", quantize="nf4")
    linear = 3 * [64 * 64, 64 * 64, 32 * 64, 32 * 64, 160 * 64, 160 * 64, 160 * 64]
    assert plain.frozen - packed.frozen == sum(2 * n - nf4_bytes(n) for n in linear)
    assert packed.unpacked == 2 * 160 * 64


def test_a_llava_counts_tower_projector_and_pictures(folders: dict[str, str]) -> None:
    targets = ["q_proj", "v_proj", "fc1"]
    adapter = AdapterConfig(method="moslora", r=4, dropout=0.0, target_modules=targets)
    found = memory(find_model(folders["llava"]), adapter, Setting(batch_per_gpu=2, tokens=26, checkpointing=True))
    assert (found.tokens, found.supervised) == (26, 10)  # 16 positions are the picture's
    wider = memory(find_model(folders["llava"]), adapter, Setting(batch_per_gpu=2, tokens=26, tower_r=8))
    tower = 2 * (2 * (4 * 64 + 8 * 8 - 4 * 4) + 4 * (32 + 64) + 8 * 8 - 4 * 4)  # two layers: q, v and fc1
    assert wider.trainable - found.trainable == tower
    projector = 32 * 32 + 32 + 32 * 32 + 32
    language = 2 * (4 * (32 + 32) + 4 * (32 + 16) + 2 * 16)
    assert found.trainable == projector + language + 2 * (2 * (4 * 64 + 16) + 4 * (32 + 64) + 16)
    half = memory(find_model(folders["llava"]), adapter, Setting(batch_per_gpu=2, tokens=26, supervised=5))
    assert half.logits < wider.logits


def test_a_model_that_names_its_body_otherwise_is_counted(tmp_path: Path) -> None:
    sizes = {key: LLAMA[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    told = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "max_position_embeddings": 66}
    folder = write_config(tmp_path, {**told, **sizes, "num_attention_heads": 4})
    adapter = AdapterConfig(method="lora", r=2, target_modules=["query"])
    found = memory(find_model(folder), adapter, Setting(tokens=32, supervised=8))
    assert (found.tokens, found.supervised) == (32, 8)
    assert 0 < found.logits < found.step


@pytest.mark.slow
def test_a_unet_and_a_tower_are_counted(folders: dict[str, str]) -> None:
    unet = memory(find_model(folders["unet"]), AdapterConfig(method="lora", r=4), Setting(batch_per_gpu=2))
    assert (unet.tokens, unet.supervised) == (None, None)
    more = memory(find_model(folders["unet"]), AdapterConfig(method="lora", r=4), Setting(batch_per_gpu=4))
    assert more.step == pytest.approx(2 * unet.step, rel=0.2)
    less = Setting(batch_per_gpu=4, checkpointing=True)
    assert memory(find_model(folders["unet"]), AdapterConfig(method="lora", r=4), less).kept < more.kept
    tower = memory(find_model(folders["clip"]), AdapterConfig(method="full"), Setting())
    assert (tower.tokens, tower.frozen, tower.unpacked) == (17, 0, 0)


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("llama", ["--shard"], "--shard divides the frozen weights among GPUs"),
        ("llama", ["--shard", "--gpus", "2", "--quantize", "nf4"], "cannot be divided"),
        ("llama", ["--gpus", "0"], "--gpus=0 must be at least 1"),
        ("llama", ["--batch-per-gpu", "-1"], "--batch-per-gpu=-1 must be at least 1"),
        ("llama", ["--supervised", "65", "--tokens", "64"], "--supervised=65 is more than the 64 tokens"),
        ("llama", ["--tokens", "65"], "--tokens=65 is longer than llama allows"),
        ("llama", ["--tower-r", "8"], "--tower-r=8 is for a LLaVA"),
        ("llava", ["--tokens", "16", "--targets", "q_proj"], "must be at least 17 with a picture"),
        ("unet", ["--quantize", "nf4"], "--quantize nf4 is for language models"),
        ("unet", ["--tokens", "7"], "--tokens=7 has no effect on unet"),
        ("clip", ["--supervised", "7"], "--supervised=7 is for language models"),
    ],
)
def test_what_cannot_be_is_refused(model: str, words: list[str], message: str, folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        main(["--model", folders[model], "--method", "lora", "--memory", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "all", "--memory"], "name one method"),
        (["--method", "full_moe", "--memory"], "as many tokens as the router gives"),
        (["--method", "lora", "--gpus", "2"], "--gpus has no effect without --memory"),
        (["--method", "goat", "--r", "9", "--memory"], "not a multiple of --num_experts"),
    ],
)
def test_a_wrong_command_says_why(words: list[str], message: str, folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        main(["--model", folders["llama"], *words])


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str], wide: str) -> None:
    words = ["--model", wide, "--method", "moslora", "--memory", "--batch-per-gpu", "2", "--tokens", "64"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "moslora, r = 8; 2 samples of 64 tokens on one GPU"
    assert [line.split("  ")[0] for line in lines[3:5]] == ["frozen weights", "trained weights"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == sum(
        found[key] for key in ("frozen", "gathered", "unpacked", "start", "trained", "gradients", "moments", "step")
    )


def test_checkpointing_keeps_the_inputs_of_blocks(wide: str) -> None:
    whole, again = counted(wide, "moslora"), counted(wide, "moslora", checkpointing=True)
    assert again.kept < whole.kept / 2
    assert again.logits == whole.logits
