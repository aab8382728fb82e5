"""What a model's repository on the Hub is made of: code, model card, and how both get there."""
