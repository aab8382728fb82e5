"""What a model is: one configuration for each family."""
