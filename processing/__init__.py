"""Before and after the model: images, masks, label maps, scores."""
