"""Medical volumes: reading and writing, geometry, resampling, patches, inference and scores in three dimensions."""
