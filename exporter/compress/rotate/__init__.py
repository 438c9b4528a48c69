"""Orthogonal matrices folded into the weights, so that no channel stands out."""
