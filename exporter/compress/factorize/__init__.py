"""Factorization: two thin matrices in place of one, one method, one file."""
