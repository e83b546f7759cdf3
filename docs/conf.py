"""Sphinx configuration: ``sphinx-build -W docs docs/_build`` with the extra ``docs``."""

from skminilm import __version__

project = "skminilm"
copyright = "2026, the skminilm developers"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False
html_theme = "furo"
myst_heading_anchors = 3
exclude_patterns = ["_build"]
