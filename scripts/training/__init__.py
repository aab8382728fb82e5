"""What the scripts share: data sets, augmentation, the training loop, generated scenes."""
