"""What a model does: primitives, encoders, decoders and the public models."""

# Importing configurations registers our models with transformers (see `registration.py`), which imports the files of this
# folder. Here it happens before any of them: otherwise it would meet the one that is being imported half done.
from .. import configuration  # noqa: F401
