"""Model runners: `torch` runs a model in-process; `base` is the contract they share."""
