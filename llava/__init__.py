"""LLaVA-1.5 visual instruction tuning with adapters on the language model and the vision tower."""
