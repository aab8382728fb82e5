"""Backbones that users register with AutoBackbone in a module of their own.

In the package there are none. Where a saved model has such a backbone, the repository holds this file with that module's
source and its registration instead (see `hub/backbone_export.py`), so that the model opens without the user's module.
"""

REGISTERED_HERE: tuple[str, ...] = ()
