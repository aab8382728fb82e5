"""Runs before any test is collected."""

import sys
from pathlib import Path

import contextseg

# pytest imports the `__init__.py` of the repository's root as a package named after the folder. As a second copy of
# contextseg it would register its own classes with transformers' Auto classes; so that name is given to the first one.
sys.modules.setdefault(Path(contextseg.__file__).parent.name, contextseg)
