"""Vision-language benchmarks: nine tables of VLMEvalKit, scored by its exact-matching rules."""
