"""What a processor has that decides how engines lay out weights."""

from __future__ import annotations

import pytest

from runtime.host import cpu_flags
from targets import processor
from targets.processor import Processor


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 fma\n\nprocessor: 1\nflags: fpu\n", {"fpu", "avx2", "fma"}),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"}),
        ("CPU implementer: 0x41\n", set()),
    ],
)
def test_instructions_are_read_as_linux_lists_them(cpuinfo, flags):
    assert cpu_flags(cpuinfo) == flags


@pytest.mark.parametrize(
    ("machine", "flags", "found"),
    [
        ("x86_64", {"fpu", "avx2", "avx512f"}, Processor("x86_64", frozenset({"avx2", "avx512"}))),
        ("x86_64", {"fpu", "sse2"}, Processor("x86_64")),
        ("aarch64", {"asimd", "asimddp"}, Processor("aarch64", frozenset({"dotprod"}))),
        ("arm64", set(), Processor.usual("aarch64")),  # macOS lists nothing
        ("AMD64", set(), Processor.usual("x86_64")),
        ("riscv64", {"rv64imafdc"}, Processor("riscv64")),
    ],
)
def test_this_machine(monkeypatch, machine, flags, found):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset(flags))
    assert Processor.here() == found
