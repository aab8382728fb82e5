"""What one runs: training, evaluation, prediction, conversion, export, benchmarks, the demo."""
