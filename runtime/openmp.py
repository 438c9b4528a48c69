"""How threads of OpenMP wait for each other: they spin for a moment, then sleep.

llama.cpp's threads meet after every operation of the graph. Threads that sleep there at once make decoding of a small
model several times slower than what an application sees that leaves OpenMP alone; threads that spin until it is their
turn make it tens of times slower as soon as anything else runs on the machine (benchmarks/openmp_waiting.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SPINS = 500
"""Rounds of GNU's libgomp, some microseconds: about as long as an operation of a small model on one token."""
_VARIABLES = ("OMP_", "GOMP_", "KMP_")


def wait_briefly() -> None:
    """Set it for libraries that this process loads from now on, unless the user has said how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def child_environment(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment with OpenMP's variables replaced, so that what is measured is the same everywhere."""
    return {**without_openmp(environment), "GOMP_SPINCOUNT": str(SPINS), "OMP_NUM_THREADS": str(threads)}


def without_openmp(environment: Mapping[str, str]) -> dict[str, str]:
    """All but OpenMP's variables."""
    return {name: value for name, value in environment.items() if not name.startswith(_VARIABLES)}
