"""`python -m secateur` is the same as `secateur`."""

from __future__ import annotations

from .main import app

if __name__ == "__main__":
    app()
