"""What all pipelines of mosgoat share: adapters, the training engine, recipes, reporting."""
