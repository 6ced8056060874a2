"""Checks of recipe sections: each impossible value is found, named, and told what is allowed."""

from dataclasses import fields, replace
from typing import get_args

import pytest

from common.adapters import METHODS
from common.config import OPTIONS, AdapterConfig, Method, TrainConfig, uses_alpha, with_method
from common.config_checks import adapter_problems, require_sound, train_problems
from common.errors import UserError


def test_every_method_has_options_and_an_entry_in_methods() -> None:
    assert set(OPTIONS) == set(get_args(Method)) == set(METHODS)


def test_options_are_keys_of_the_section() -> None:
    keys = {field.name for field in fields(AdapterConfig)}
    assert frozenset.union(*OPTIONS.values()) <= keys


@pytest.mark.parametrize("method", get_args(Method))
def test_defaults_of_every_method_are_sound(method: Method) -> None:
    assert adapter_problems(AdapterConfig(method=method)) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AdapterConfig(method="goat", r=12), ["adapter.r=12", "adapter.num_experts=8", "8, 16, 24"]),
        (AdapterConfig(method="goat", top_k=9), ["adapter.top_k=9", "between 1 and adapter.num_experts=8"]),
        (AdapterConfig(method="molora", num_experts=1), ["adapter.num_experts=1", "at least 2"]),
        (AdapterConfig(method="lora", num_experts=4), ["adapter.num_experts=4", "no effect", "goat"]),
        (AdapterConfig(method="full", alpha=8), ["adapter.alpha=8", "no effect", "lora"]),
        (AdapterConfig(method="goat", alpha=16), ["adapter.alpha=16", "theory", "alpha_over_r"]),
        (AdapterConfig(method="lora", alpha=16, scaling=2.0), ["adapter.alpha=16", "scaling=2.0"]),
        (AdapterConfig(method="lora", scaling="theory"), ["adapter.scaling=theory", "lora", "alpha_over_r"]),
        (AdapterConfig(method="moslora", scaling="alpha_over_expert_rank"), ["alpha_over_expert_rank", "moslora"]),
        (AdapterConfig(method="ts_mixing", r=7), ["adapter.r=7", "even"]),
        (AdapterConfig(r=0), ["adapter.r=0", "at least 1"]),
        (AdapterConfig(dropout=1.0), ["adapter.dropout=1.0", "[0, 1)"]),
        (AdapterConfig(method="goat", rho=0.0), ["adapter.rho=0.0", "positive"]),
        (AdapterConfig(method="goat", balance_coef=-1.0), ["adapter.balance_coef=-1.0", "negative"]),
        (AdapterConfig(method="loha", dropout=0.1), ["adapter.dropout=0.1", "no effect", "moslora"]),
        (AdapterConfig(method="full", dropout=0.1), ["adapter.dropout=0.1", "no effect"]),
        (AdapterConfig(method="rslora", scaling=2.0), ["adapter.scaling=2.0", "no effect", "lora"]),
        (AdapterConfig(method="dora", scaling="theory"), ["adapter.scaling=theory", "dora", "alpha_over_r"]),
        (AdapterConfig(method="neat", scaling="alpha_over_r"), ["adapter.scaling=alpha_over_r", "neat", "a number"]),
        (AdapterConfig(method="adalora", init_r=8), ["adapter.init_r=8", "exceed adapter.r=8"]),
        (AdapterConfig(method="adalora", beta1=1.0), ["adapter.beta1=1.0", "between 0 and 1"]),
        (AdapterConfig(method="adalora", delta_t=0), ["adapter.delta_t=0", "at least 1"]),
        (AdapterConfig(method="adalora", tfinal=-1), ["adapter.tfinal=-1", "negative"]),
        (AdapterConfig(method="kasa", singular_coef=-1.0), ["adapter.singular_coef=-1.0", "negative"]),
        (AdapterConfig(method="loha", module_dropout=1.0), ["adapter.module_dropout=1.0", "[0, 1)"]),
        (AdapterConfig(method="lokr", decompose_factor=0), ["adapter.decompose_factor=0", "-1 or at least 1"]),
        (AdapterConfig(method="lora_dash", dash_steps=0), ["adapter.dash_steps=0", "at least 1"]),
        (AdapterConfig(method="full_moe", top_k=9), ["adapter.top_k=9", "between 1 and"]),
    ],
)
def test_impossible_adapter_is_named(config: AdapterConfig, words: list[str]) -> None:
    (problem,) = adapter_problems(config)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0.0),
        ("learning_rate", -1e-4),
        ("log_every", 0),
        ("max_steps", 0),
        ("warmup_steps", -1),
    ],
)
def test_impossible_training_value_is_named(key: str, value: float) -> None:
    problems = train_problems(replace(TrainConfig(), **{key: value}))  # type: ignore[arg-type]
    assert len(problems) == 1
    assert f"train.{key}={value}" in problems[0]


def test_accumulation_must_divide_the_batch() -> None:
    (problem,) = train_problems(TrainConfig(batch_size=10, gradient_accumulation_steps=4))
    assert "train.batch_size=10" in problem
    assert "train.gradient_accumulation_steps=4" in problem


def test_no_dropout_is_no_problem_where_a_method_has_none() -> None:
    assert adapter_problems(AdapterConfig(method="neat", dropout=0.0)) == []


def test_the_rank_of_a_method_without_rank_need_not_fit_its_experts() -> None:
    assert adapter_problems(AdapterConfig(method="full_moe", r=12)) == []


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(UserError, match=r"(?s)2 problems.*first.*second"):
        require_sound(["first", "second"])


def test_with_method_keeps_what_applies_and_drops_what_does_not() -> None:
    base = AdapterConfig(method="lora", r=16, alpha=4, dropout=0.2, target_modules=["q"])
    for method in get_args(Method):
        changed = with_method(base, method)
        assert adapter_problems(changed) == [], method
        assert (changed.method, changed.r) == (method, 16)
        assert changed.dropout == (0.2 if "dropout" in OPTIONS[method] else None)
    assert with_method(base, "moslora").alpha == 4
    assert with_method(base, "goat").alpha is None
    assert with_method(base, "goat").target_modules == ["q"]


def test_alpha_counts_only_in_rules_that_divide_it() -> None:
    assert uses_alpha(AdapterConfig(method="lora"))
    assert uses_alpha(AdapterConfig(method="goat", scaling="alpha_over_r"))
    assert not uses_alpha(AdapterConfig(method="goat"))
    assert not uses_alpha(AdapterConfig(method="lora", scaling=3.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["epochs", "learning_rate", "weight_decay", "max_grad_norm"])
def test_numbers_must_be_finite(key: str, value: float) -> None:
    assert any(f"train.{key}={value}" in text for text in train_problems(replace(TrainConfig(), **{key: value})))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["alpha", "scaling"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_must_be_positive_and_finite(key: str, value: float) -> None:
    config = AdapterConfig(method="lora", **{key: value})  # type: ignore[arg-type]
    assert any(f"adapter.{key}={value}" in text for text in adapter_problems(config))


@pytest.mark.parametrize("key", ["batch_size", "max_steps", "warmup_steps", "log_every", "gradient_accumulation_steps"])
def test_counts_beyond_any_machine_are_refused(key: str) -> None:
    config = replace(TrainConfig(), **{key: 10**20})  # type: ignore[arg-type]
    assert any(f"train.{key}={10**20} must be less than" in text for text in train_problems(config))


def test_no_micro_batches_is_a_problem_and_no_division_by_zero() -> None:
    (problem,) = train_problems(TrainConfig(gradient_accumulation_steps=0))
    assert "train.gradient_accumulation_steps=0 must be at least 1" in problem


def test_an_empty_list_of_targets_is_named() -> None:
    (problem,) = adapter_problems(AdapterConfig(target_modules=[]))
    assert "adapter.target_modules is an empty list" in problem
