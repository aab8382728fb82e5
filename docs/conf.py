"""Settings of the documentation; `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

import contextseg

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "contextseg"
author = "the contextseg contributors"
copyright = "the contextseg contributors. Apache-2.0"
release = version = contextseg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
default_role = "code"
smartquotes_action = "qe"  # no dashes: --help stays as it is typed
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True

# Strict about public names. Types of other packages have no page here, and their inventories would need a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!contextseg\.\w+$).*")]

html_theme = "pydata_sphinx_theme"
html_title = "contextseg"
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
