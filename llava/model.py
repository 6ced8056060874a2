"""The LLaVA model: load the base, put the adapters on, save and load a finished run."""

from llava.model_adapt import peft_config, prepare_training
from llava.model_base import LlavaBase, load_model
from llava.model_run import load_run, save_merged, save_run

__all__ = ["LlavaBase", "load_model", "load_run", "peft_config", "prepare_training", "save_merged", "save_run"]
