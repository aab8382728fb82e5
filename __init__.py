"""contextseg: wide-context semantic segmentation for Hugging Face transformers.

Importing it makes transformers' Auto classes and pipelines know its models, and nothing else. The public names, which
`__init__.pyi` lists, are loaded when they are first used, so that the import costs next to nothing.
"""

from lazy_loader import attach_stub

from .registration import register

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

register()
