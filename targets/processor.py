"""What a processor has that decides how engines lay out weights in memory."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from runtime.host import cpu_flags

FEATURES = {
    "aarch64": {"dotprod": "asimddp"},
    "x86_64": {"avx2": "avx2", "avx512": "avx512f"},
}
"""Of each architecture: instructions by the name that a profile gives them, and as Linux lists them."""
USUAL = {"aarch64": frozenset({"dotprod"}), "x86_64": frozenset({"avx2"})}
"""What nearly every processor of the last years has: ARMv8.2 with dotprod, AVX2."""


_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
"""What some systems call these architectures."""


def arch_here() -> str:
    """This machine's architecture, one of FEATURES, or as the system names another."""
    here = platform.machine().lower()
    return _NAMES.get(here, here)


@dataclass(frozen=True)
class Processor:
    """arch: one of FEATURES, or another that nothing is known of; features: of FEATURES[arch]"""

    arch: str
    features: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def usual(cls, arch: str) -> Processor:
        """One of that architecture of which nothing more is said."""
        return cls(arch, USUAL.get(arch, frozenset()))

    @classmethod
    def here(cls) -> Processor:
        """This machine's; where the system lists no instructions (macOS, Windows), a usual one."""
        arch = arch_here()
        flags = cpu_flags()
        if not flags:
            return cls.usual(arch)
        return cls(arch, frozenset(name for name, flag in FEATURES.get(arch, {}).items() if flag in flags))
