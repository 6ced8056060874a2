"""SDXL: load the base, put the adapters on, encode prompts, save and load a finished run."""

from dreambooth.model_adapt import check_adapters, prepare_training
from dreambooth.model_base import TEXT_ENCODERS, LatentScale, SdxlBase, decode, load_model, pipeline_of, sampler_of
from dreambooth.model_run import load_run, put_adapter, read_about, read_recipe, save_merged, save_run, take_adapter_off
from dreambooth.model_text import Prompts, Tokens, encode_ids, encode_prompts, tokenize

__all__ = [
    "TEXT_ENCODERS",
    "LatentScale",
    "Prompts",
    "SdxlBase",
    "Tokens",
    "check_adapters",
    "decode",
    "encode_ids",
    "encode_prompts",
    "load_model",
    "load_run",
    "pipeline_of",
    "prepare_training",
    "put_adapter",
    "read_about",
    "read_recipe",
    "sampler_of",
    "save_merged",
    "save_run",
    "take_adapter_off",
    "tokenize",
]
