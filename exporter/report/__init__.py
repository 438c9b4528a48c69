"""What an export says of itself: report.json, a page, a model card, a Modelfile, and the table on the terminal."""

from __future__ import annotations

from exporter.report.report import Report

__all__ = ["Report"]
