"""The command line: one verb, one library call. `main` is the console script."""

from __future__ import annotations

from exporter.cli.app import main

__all__ = ["main"]
