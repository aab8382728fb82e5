"""Images of any size, with or without a place on Earth: reading them by windows, segmenting them, writing the results."""
