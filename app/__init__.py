"""The page of `contextseg-app`: looking at images through the eyes of a segmenter."""
