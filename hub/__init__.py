"""Repositories on the Hub: their code, their model card, saving and uploading."""
