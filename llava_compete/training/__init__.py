"""From a recipe to a trained checkpoint, on transformers' Trainer and through its public hooks."""
