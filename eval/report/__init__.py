"""One page from runs and evaluations of any pipelines."""
