"""The configurations, one per model family."""
