"""Training: options, loop, checkpoints, tasks, integration with transformers' Trainer, recipes and records of
a run.
"""
