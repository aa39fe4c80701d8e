"""Where what is downloaded or built once is kept: per user, never inside a state folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/slackwater`, by default `~/.cache/slackwater`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "slackwater"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
