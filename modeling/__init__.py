"""What a model does: primitives, encoders, decoders and the public models."""
