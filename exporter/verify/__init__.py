"""`packlight verify`: an artifact against the model that it was made from."""

from __future__ import annotations

from exporter.verify.room import refuse_too_large
from exporter.verify.run import VerifyOptions, bits_per_weight, verify

__all__ = ["VerifyOptions", "bits_per_weight", "refuse_too_large", "verify"]
