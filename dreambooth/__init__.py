"""Subject-driven generation with SDXL and adapters."""
