"""Hadamard matrices: Sylvester's doubling of Paley's (J. Math. Phys. 12, 1933), with signs that a seed draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

LARGEST_CORE = 256


def rotation(size: int, seed: int) -> Matrix:
    """An orthogonal matrix of that size: Hadamard's with random signs where one is known here, else a random one.

    Every entry of the first kind is +-1 / sqrt(size), so that one large value becomes `size` small ones.
    """
    generator = np.random.default_rng(seed)
    known = hadamard(size)
    if known is None:
        q, r = np.linalg.qr(generator.standard_normal((size, size)))
        made: Matrix = q * np.sign(r.diagonal())
        return made
    signs = generator.choice([-1.0, 1.0], size)
    signed: Matrix = signs[:, None] * known / np.sqrt(size)
    return signed


def hadamard(size: int) -> Matrix | None:
    """A matrix of +1 and -1 whose rows are orthogonal, of that size; None where none is known here."""
    doublings, core = 0, size
    while core >= 1:
        found = _core(core)
        if found is not None:
            for _ in range(doublings):
                found = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), found)
            return found
        if core % 2:
            return None
        core, doublings = core // 2, doublings + 1
    return None


def _core(size: int) -> Matrix | None:
    """One that is not doubled: sizes 1, q + 1 for a prime q = 3 mod 4, and 2 (q + 1) for a prime q = 1 mod 4."""
    if size == 1:
        return np.ones((1, 1))
    if size > LARGEST_CORE or size % 4:
        return None
    if _prime(size - 1) and (size - 1) % 4 == 3:
        q = size - 1
        made = np.block([[np.zeros((1, 1)), np.ones((1, q))], [-np.ones((q, 1)), _jacobsthal(q)]])
        first: Matrix = made + np.eye(size)
        return first
    q = size // 2 - 1
    if _prime(q) and q % 4 == 1:
        conference = np.block([[np.zeros((1, 1)), np.ones((1, q))], [np.ones((q, 1)), _jacobsthal(q)]])
        second: Matrix = np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])
        return second
    return None


def _jacobsthal(q: int) -> Matrix:
    """1, -1 or 0 at (i, j) as i - j is a square modulo q, is none, or is 0."""
    squares = {number * number % q for number in range(1, q)}
    character = np.array([0.0] + [1.0 if number in squares else -1.0 for number in range(1, q)])
    made: Matrix = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    return made


def _prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
