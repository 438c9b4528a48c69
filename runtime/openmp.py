"""How threads of OpenMP wait for each other: they spin for a moment, then sleep.

llama.cpp's threads meet after every operation of the graph. Threads that sleep there at once make decoding of a small
model several times slower than what an application sees that leaves OpenMP alone; threads that spin until it is their
turn make it tens of times slower as soon as anything else runs on the machine (benchmarks/openmp_waiting.py).
"""

from __future__ import annotations

import os

SPINS = 500
"""Rounds of GNU's libgomp, some microseconds: about as long as an operation of a small model on one token."""
_VARIABLES = ("OMP_", "GOMP_", "KMP_")


def wait_briefly() -> None:
    """Set it for libraries that this process loads from now on, unless the user has said how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def child_environment(threads: int) -> dict[str, str]:
    """This process's environment with OpenMP's variables replaced, so that what is measured is the same everywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
    return {**kept, "GOMP_SPINCOUNT": str(SPINS), "OMP_NUM_THREADS": str(threads)}
