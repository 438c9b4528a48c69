"""Scales moved between matrices and what comes before them, so that rounding costs less."""
