"""Arithmetic on vectors of LANES floats, as Python expressions that llvmlite compiles for this processor.

No operation is fused or reordered: IEEE 754 single precision, each rounded, as C without fast-math has it.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

Index = Any
"""Of a loop: a value of llvmlite."""
LANES = 16
"""One register of AVX-512; two of AVX2, four of NEON and SSE."""
_F32, _I32, _I64, _I8, _POINTER = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8), ir.PointerType()
_FLOATS, _INTS, _BYTES = (ir.VectorType(kind, LANES) for kind in (_F32, _I32, _I8))
_ROUND = 12582912.0
"""1.5 * 2**23: what is added to it is rounded to a whole number, in the lowest bits (ggml's nearest_int)."""


class Singles(NamedTuple):
    """So many single floats for each tile; read, each is in all lanes."""

    count: int


class Repeated(NamedTuple):
    """So many vectors of floats for each of some tiles, which serve again for those behind them."""

    count: int


@dataclass(frozen=True)
class Mask:
    """A condition in every lane."""

    builder: Any
    value: Any

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.and_(self.value, other.value))

    def choose(self, yes: Floats, no: Floats) -> Floats:
        """`yes` where it holds, else `no`."""
        return Floats(self.builder, self.builder.select(self.value, yes.value, no.value))


@dataclass(frozen=True)
class Floats:
    """A float32 in every lane."""

    builder: Any
    value: Any

    def _other(self, other: Floats | float) -> Any:  # noqa: ANN401 - a value of llvmlite
        return other.value if isinstance(other, Floats) else ir.Constant(_FLOATS, [_single(other)] * LANES)

    def __add__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fadd(self.value, self._other(other)))

    def __sub__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fsub(self.value, self._other(other)))

    def __mul__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Floats | float) -> Floats:
        return Floats(self.builder, self.builder.fdiv(self.value, self._other(other)))

    def __neg__(self) -> Floats:
        return Floats(self.builder, self.builder.fneg(self.value))

    def __lt__(self, other: Floats | float) -> Mask:
        return Mask(self.builder, self.builder.fcmp_ordered("<", self.value, self._other(other)))

    def __gt__(self, other: Floats | float) -> Mask:
        return Mask(self.builder, self.builder.fcmp_ordered(">", self.value, self._other(other)))

    def __ge__(self, other: Floats | float) -> Mask:
        return Mask(self.builder, self.builder.fcmp_ordered(">=", self.value, self._other(other)))

    def same(self, other: Floats | float) -> Mask:
        """Where both are equal."""
        return Mask(self.builder, self.builder.fcmp_ordered("==", self.value, self._other(other)))

    def differs(self, other: Floats | float) -> Mask:
        """Where they are not, NaN included."""
        return Mask(self.builder, self.builder.fcmp_unordered("!=", self.value, self._other(other)))

    def rounded(self) -> Ints:
        """The nearest whole number, halves to even, by ggml's trick: what it gives beyond 2**22 is as odd as there."""
        bits = self.builder.bitcast((self + _ROUND).value, _INTS)
        low = self.builder.and_(bits, ir.Constant(_INTS, [0x007FFFFF] * LANES))
        return Ints(self.builder, self.builder.sub(low, ir.Constant(_INTS, [0x00400000] * LANES)))


@dataclass(frozen=True)
class Ints:
    """An int32 in every lane."""

    builder: Any
    value: Any

    def clipped(self, least: int, most: int) -> Ints:
        """Not over `most`, then not under `least`."""
        value = self.value
        for bound, compared in ((most, "<"), (least, ">")):
            limit = ir.Constant(_INTS, [bound] * LANES)
            value = self.builder.select(self.builder.icmp_signed(compared, value, limit), value, limit)
        return Ints(self.builder, value)

    def at_most(self, most: int) -> Ints:
        """Not over `most`."""
        limit = ir.Constant(_INTS, [most] * LANES)
        return Ints(
            self.builder, self.builder.select(self.builder.icmp_signed("<", self.value, limit), self.value, limit)
        )

    def as_byte(self) -> Ints:
        """What is left of it in an unsigned byte."""
        return self & 255

    def floats(self) -> Floats:
        """As floats."""
        return Floats(self.builder, self.builder.sitofp(self.value, _FLOATS))

    def plus(self, number: int) -> Ints:
        """Each with a number added."""
        return Ints(self.builder, self.builder.add(self.value, ir.Constant(_INTS, [number] * LANES)))

    def __and__(self, bits: int) -> Ints:
        return Ints(self.builder, self.builder.and_(self.value, ir.Constant(_INTS, [bits] * LANES)))

    def __or__(self, other: Ints) -> Ints:
        return Ints(self.builder, self.builder.or_(self.value, other.value))

    def __lshift__(self, bits: int) -> Ints:
        return Ints(self.builder, self.builder.shl(self.value, ir.Constant(_INTS, [bits] * LANES)))

    def __rshift__(self, bits: int) -> Ints:
        """For numbers from zero up."""
        return Ints(self.builder, self.builder.lshr(self.value, ir.Constant(_INTS, [bits] * LANES)))


def joined(parts: Sequence[Ints]) -> Ints:
    """The bits of all of them."""
    return functools.reduce(operator.or_, parts)


def _single(number: float) -> float:
    """The float32 nearest to a number."""
    return ctypes.c_float(number).value


def _spread(builder: Any, single: Any) -> Any:  # noqa: ANN401 - values of llvmlite
    """A float in every lane."""
    none = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(none, single, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, none, ir.Constant(_INTS, [0] * LANES))


class Place:
    """Vectors in memory, or single floats, one behind the other."""

    def __init__(self, builder: Any, pointer: Any, kind: Any = _FLOATS) -> None:  # noqa: ANN401
        self.builder, self.pointer, self.kind = builder, pointer, kind

    def _at(self, index: Index | int) -> Any:  # noqa: ANN401 - a value of llvmlite
        index = ir.Constant(_I64, index) if isinstance(index, int) else index
        return self.builder.gep(self.pointer, [index], source_etype=self.kind)

    def __getitem__(self, index: Index | int) -> Floats:
        found = self.builder.load(self._at(index), typ=self.kind, align=self._align)
        return Floats(self.builder, _spread(self.builder, found) if self.kind == _F32 else found)

    def __setitem__(self, index: Index | int, value: Floats | Ints) -> None:
        stored = self.builder.trunc(value.value, _BYTES) if self.kind == _BYTES else value.value
        self.builder.store(stored, self._at(index), align=self._align)

    @property
    def _align(self) -> int:
        return 1 if self.kind == _BYTES else 4

    def from_(self, index: Index | int) -> Place:
        """What lies from there on."""
        return Place(self.builder, self._at(index), self.kind)


class Kernel:
    """A function of pointers that is called for every tile: `void name(n_tiles, n_repeated, pointers…)`.

    sizes: vectors that a tile has behind each pointer; of a negative one so many vectors of bytes
    """

    def __init__(self, name: str, sizes: Sequence[int | Singles | Repeated]) -> None:
        self.name, self.sizes = name, sizes
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, *[_POINTER] * len(sizes)])
        self.function = ir.Function(self.module, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def room(self, count: int) -> Place:
        """Vectors of its own."""
        with self.builder.goto_entry_block():  # once, not with every tile
            return Place(self.builder, self.builder.alloca(_FLOATS, ir.Constant(_I32, count)))

    def constant(self, number: float) -> Floats:
        """The same in every lane."""
        return Floats(self.builder, ir.Constant(_FLOATS, [_single(number)] * LANES))

    def sqrt(self, of: Floats) -> Floats:
        """Square roots."""
        return self._call("llvm.sqrt", of)

    def abs(self, of: Floats) -> Floats:
        """Without signs."""
        return self._call("llvm.fabs", of)

    def _call(self, name: str, of: Floats) -> Floats:
        full = f"{name}.v{LANES}f32"
        declared = self.module.globals.get(full) or ir.Function(self.module, ir.FunctionType(_FLOATS, [_FLOATS]), full)
        return Floats(self.builder, self.builder.call(declared, [of.value]))

    def loop(
        self,
        start: int,
        stop: Index | int,
        values: Sequence[Floats],
        body: Callable[..., Sequence[Floats]],
    ) -> list[Floats]:
        """body(index, *values) gives the values of the next turn; those after the last. stop: a number or a value."""
        builder = self.builder
        before = builder.block
        block, after = (self.function.append_basic_block(name) for name in ("loop", "after"))
        builder.branch(block)
        builder.position_at_end(block)
        index = builder.phi(_I64)
        index.add_incoming(ir.Constant(_I64, start), before)
        phis = [builder.phi(_FLOATS) for _ in values]
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value.value, before)
        found = list(body(index, *(Floats(builder, phi) for phi in phis)))
        following = builder.add(index, ir.Constant(_I64, 1))
        last = builder.block
        index.add_incoming(following, last)
        for phi, value in zip(phis, found, strict=True):
            phi.add_incoming(value.value, last)
        end = ir.Constant(_I64, stop) if isinstance(stop, int) else stop
        builder.cbranch(builder.icmp_unsigned("<", following, end), block, after)
        builder.position_at_end(after)
        return found

    def number(self, index: Index) -> Floats:
        """A loop's index as a float, in every lane."""
        single = self.builder.sitofp(self.builder.trunc(index, _I32), _F32)
        return Floats(self.builder, _spread(self.builder, single))

    def turned(self, rows: Sequence[Floats]) -> list[Floats]:
        """LANES vectors as LANES others: lane a of vector b becomes lane b of vector a."""
        found, width = [row.value for row in rows], 1
        while width < LANES:  # swaps ever larger squares that lie off the diagonal
            upper = [lane if not lane & width else LANES + lane - width for lane in range(LANES)]
            lower = [lane + width if not lane & width else LANES + lane for lane in range(LANES)]
            for number in range(LANES):
                if not number & width:
                    pair = found[number], found[number + width]
                    found[number], found[number + width] = (
                        self.builder.shuffle_vector(*pair, ir.Constant(_INTS, lanes)) for lanes in (upper, lower)
                    )
            width *= 2
        return [Floats(self.builder, value) for value in found]

    def compiled(self, tile: Callable[..., None]) -> Compiled:
        """tile(*places) does one tile. The function for this processor."""
        count, repeated, *pointers = self.function.args

        def each(index: Index) -> list[Floats]:
            places = []
            for pointer, size in zip(pointers, self.sizes, strict=True):
                number, kind = index, _FLOATS
                if isinstance(size, Repeated):
                    number = self.builder.urem(index, repeated)
                elif isinstance(size, Singles):
                    kind = _F32
                elif size < 0:
                    kind = _BYTES
                each_has = abs(size) if isinstance(size, int) else size.count
                offset = self.builder.mul(number, ir.Constant(_I64, each_has))
                places.append(Place(self.builder, pointer, kind).from_(offset))
            tile(*places)
            return []

        self.loop(0, count, [], each)
        self.builder.ret_void()
        return Compiled(str(self.module), self.name, len(self.sizes))


class Compiled:
    """Machine code, and what keeps it alive. Calling it lets go of the GIL."""

    def __init__(self, text: str, name: str, pointers: int) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        # Whole registers of 512 bits where the processor has them: by itself LLVM halves them.
        wide = '"prefer-vector-width"="512" "min-legal-vector-width"="512"'
        head = f'define void @"{name}"('
        lines = [line + f" {wide}" if line.startswith(head) else line for line in text.splitlines()]
        module = llvm.parse_assembly("\n".join(lines))
        module.verify()
        features = llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=3
        )
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * pointers)
        self._function = kind(self._engine.get_function_address(name))

    def __call__(self, n_tiles: int, *arrays: npt.NDArray[Any], repeated: int = 1) -> None:
        """Do all tiles. The arrays are C-contiguous and have as many elements as the kernel's sizes say.

        repeated: tiles that there are of what is `Repeated`
        """
        if n_tiles < 1 or repeated < 1:  # a loop has at least one turn
            raise ValueError("no tiles")
        self._function(n_tiles, repeated, *(array.ctypes.data for array in arrays))
