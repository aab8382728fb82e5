"""Training: options, loop, checkpoints, tasks, transformers' Trainer, recipes and records."""
