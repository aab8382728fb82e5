"""What happens before and after the model: reading images and masks, inference, scores and overlays."""
