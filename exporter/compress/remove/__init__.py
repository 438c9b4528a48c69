"""Structured pruning: layers, groups of heads and feed-forward neurons that are really taken out."""
