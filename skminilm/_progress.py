"""Progress bars: tqdm's own, quiet until one is shown."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # In a notebook without ipywidgets importing it says so, shown or not: its bars are text there.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm as tqdm
