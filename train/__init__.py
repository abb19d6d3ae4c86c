"""ADMM structured pruning: model and data in, `pruned.safetensors` and `pruning.json` out."""
