"""Volumes: reading and writing, geometry, resampling, training patches, inference and scores."""
