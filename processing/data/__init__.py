"""Datasets: class tables, pairing, published layouts, augmentation, batches, reports."""
