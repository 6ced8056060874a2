from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from common.config import AdapterConfig
from common.errors import UserError
from common.export import main
from llava.config import TowerConfig
from llava.model import LlavaBase, load_model, prepare_training
from tests.llava.tiny import TinyLlava, batch_of, disturb, logits_of, parts_of, recipe_of, write_run


def run_of(tiny: TinyLlava, path: Path, **changes: Any) -> LlavaBase:
    recipe = recipe_of(parts_of(tiny), tower=TowerConfig(r=2), **changes)
    torch.manual_seed(0)
    base = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    disturb(base.model)
    base.model.eval()
    write_run(base, recipe, path)
    method = "projector" if recipe.stage == "pretrain" else recipe.adapter.method
    results = {"task": "llava", "method": method, "metrics": {}, "n": 1, "seed": 0, "config_hash": "x"}
    (path / "results.json").write_text(json.dumps(results))
    return base


@pytest.mark.parametrize("method", ["lora", "moslora"])
def test_exported_lora_opens_in_stock_peft_on_a_stock_llava(tiny_llava: TinyLlava, tmp_path: Path, method: Any) -> None:
    base = run_of(tiny_llava, tmp_path / "run", adapter=AdapterConfig(method=method, r=4))
    assert main(["--run", str(tmp_path / "run"), "--to", "lora", "--output", str(tmp_path / "lora")]) == 0
    stock = LlavaForConditionalGeneration.from_pretrained(tiny_llava.whole)  # with the tower's last layer
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        model = PeftModel.from_pretrained(stock, str(tmp_path / "lora"))
    batch = batch_of(base)
    with torch.no_grad():
        found = model(**batch).logits
    # another order of the same products; float32
    assert (found - logits_of(base, batch)).abs().max() < 5e-5


def test_exported_merged_model_opens_in_stock_transformers(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base = run_of(tiny_llava, tmp_path / "run")
    assert main(["--run", str(tmp_path / "run"), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    batch = batch_of(base)
    with torch.no_grad():
        found = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")(**batch).logits
    assert (found - logits_of(base, batch)).abs().max() < 5e-5


def test_pretrained_projector_is_no_lora(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    run_of(tiny_llava, tmp_path / "run", stage="pretrain")
    with pytest.raises(UserError, match=r"projector"):
        main(["--run", str(tmp_path / "run"), "--to", "lora", "--output", str(tmp_path / "lora")])
