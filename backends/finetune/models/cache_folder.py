"""Where this program keeps what it can make again: ``$CRMA_CACHE``, or else the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CRMA_CACHE") or user_cache_dir("crma")).expanduser()
