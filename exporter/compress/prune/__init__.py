"""Pruning: weights of the layers' matrices set to zero, one method, one file."""
