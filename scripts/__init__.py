"""Commands: training, evaluation, prediction, conversion, export and the demo."""
