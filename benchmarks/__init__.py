"""Measurements, and the code that makes them."""
