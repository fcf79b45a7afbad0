"""The command line: thin, one file per command group. `secateur --help` lists the commands."""

from __future__ import annotations
