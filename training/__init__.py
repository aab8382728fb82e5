"""How a model learns: options of a run, loop, checkpoints, tasks, Trainer, recipes, records."""
