"""Arithmetic on vectors of LANES floats, as Python expressions that llvmlite compiles for this processor.

No operation is fused or reordered: IEEE 754 single precision, each rounded, as C without fast-math has it.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

Index = Any
"""Of a loop: a value of llvmlite."""
WIDTH = 16
"""Floats of one register of AVX-512; of two of AVX2, four of NEON and SSE."""
LANES = 2 * WIDTH if llvm.get_host_cpu_features().get("avx512f") else WIDTH
"""Of kernels that add up one after the other: two registers at least, so that one sum need not wait for itself."""
_F32, _I32, _I64, _I8, _POINTER = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8), ir.PointerType()
_ROUND = 12582912.0
"""1.5 * 2**23: what is added to it is rounded to a whole number, in the lowest bits (ggml's nearest_int)."""


@dataclass(frozen=True)
class Singles:
    """So many single floats for each tile, none for those that all have in common; read, each is in all lanes."""

    count: int


@dataclass(frozen=True)
class Repeated:
    """So many vectors of floats for each of some tiles, which serve again for those behind them."""

    count: int


def _all(number: float, like: Any) -> Any:  # noqa: ANN401 - values of llvmlite
    """A number in every lane of a vector like another one."""
    kind = like.type
    return ir.Constant(kind, [number if kind.element == _I32 else _single(number)] * kind.count)


@dataclass(frozen=True)
class Mask:
    """A condition in every lane."""

    builder: Any
    value: Any

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.or_(self.value, other.value))

    def __invert__(self) -> Mask:
        return Mask(self.builder, self.builder.not_(self.value))

    def choose(self, yes: Floats, no: Floats) -> Floats:
        """`yes` where it holds, else `no`."""
        return Floats(self.builder, self.builder.select(self.value, yes.value, no.value))

    def bit(self, number: int) -> Ints:
        """That bit where it holds, else none."""
        kind = ir.VectorType(_I32, self.value.type.count)
        return Ints(self.builder, self.builder.zext(self.value, kind)) << number


@dataclass(frozen=True)
class Floats:
    """A float32 in every lane."""

    builder: Any
    value: Any

    def _other(self, other: Floats | float) -> Any:  # noqa: ANN401 - a value of llvmlite
        return other.value if isinstance(other, Floats) else _all(other, self.value)

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
        moved = (self + _ROUND).value
        bits = Ints(self.builder, self.builder.bitcast(moved, ir.VectorType(_I32, moved.type.count)))
        return (bits & 0x007FFFFF).plus(-0x00400000)

    def whole(self) -> Floats:
        """As `rounded`, of what is known to be below 2**22."""
        return self + _ROUND - _ROUND

    def within(self, least: float, most: float) -> Floats:
        """Not over `most`, then not under `least`."""
        value = self
        for bound, compared in ((most, "<"), (least, ">")):
            limit = Floats(self.builder, _all(bound, value.value))
            holds = self.builder.fcmp_ordered(compared, value.value, limit.value)
            value = Mask(self.builder, holds).choose(value, limit)
        return value


@dataclass(frozen=True)
class Ints:
    """An int32 in every lane."""

    builder: Any
    value: Any

    def clipped(self, least: int, most: int) -> Ints:
        """Not over `most`, then not under `least`."""
        value = self.value
        for bound, compared in ((most, "<"), (least, ">")):
            limit = _all(bound, value)
            value = self.builder.select(self.builder.icmp_signed(compared, value, limit), value, limit)
        return Ints(self.builder, value)

    def at_most(self, most: int) -> Ints:
        """Not over `most`."""
        limit = _all(most, self.value)
        return Ints(
            self.builder, self.builder.select(self.builder.icmp_signed("<", self.value, limit), self.value, limit)
        )

    def as_byte(self) -> Ints:
        """What is left of it in an unsigned byte."""
        return self & 255

    def floats(self) -> Floats:
        """As floats."""
        return Floats(self.builder, self.builder.sitofp(self.value, ir.VectorType(_F32, self.value.type.count)))

    def plus(self, number: int) -> Ints:
        """Each with a number added."""
        return Ints(self.builder, self.builder.add(self.value, _all(number, self.value)))

    def __and__(self, bits: int) -> Ints:
        return Ints(self.builder, self.builder.and_(self.value, _all(bits, self.value)))

    def __or__(self, other: Ints) -> Ints:
        return Ints(self.builder, self.builder.or_(self.value, other.value))

    def __xor__(self, other: Ints) -> Ints:
        return Ints(self.builder, self.builder.xor(self.value, other.value))

    def __lshift__(self, bits: int) -> Ints:
        return Ints(self.builder, self.builder.shl(self.value, _all(bits, self.value)))

    def __rshift__(self, bits: int) -> Ints:
        """For numbers from zero up."""
        return Ints(self.builder, self.builder.lshr(self.value, _all(bits, self.value)))


def joined(parts: Sequence[Ints]) -> Ints:
    """The bits of all of them."""
    return functools.reduce(operator.or_, parts)


def _single(number: float) -> float:
    """The float32 nearest to a number."""
    return ctypes.c_float(number).value


def _spread(builder: Any, single: Any, lanes: int) -> Any:  # noqa: ANN401 - values of llvmlite
    """A float in every lane."""
    none = ir.Constant(ir.VectorType(_F32, lanes), ir.Undefined)
    first = builder.insert_element(none, single, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


class Place:
    """Vectors of floats or bytes in memory, or single floats, one behind the other.

    kind: of an element, or of a vector of them; lanes: of what is read
    """

    def __init__(self, builder: Any, pointer: Any, kind: Any, lanes: int) -> None:  # noqa: ANN401
        self.builder, self.pointer, self.kind, self.lanes = builder, pointer, kind, lanes

    def _at(self, index: Index | int) -> Any:  # noqa: ANN401 - a value of llvmlite
        index = ir.Constant(_I64, index) if isinstance(index, int) else index
        return self.builder.gep(self.pointer, [index], source_etype=self.kind)

    def __getitem__(self, index: Index | int) -> Floats:
        found = self.builder.load(self._at(index), typ=self.kind, align=4)
        return Floats(self.builder, _spread(self.builder, found, self.lanes) if self.kind == _F32 else found)

    def __setitem__(self, index: Index | int, value: Floats | Ints) -> None:
        if bytes_ := getattr(self.kind, "element", None) == _I8:
            stored = self.builder.trunc(value.value, self.kind)
        else:
            stored = value.value
        self.builder.store(stored, self._at(index), align=1 if bytes_ else 4)

    def from_(self, index: Index | int) -> Place:
        """What lies from there on."""
        return Place(self.builder, self._at(index), self.kind, self.lanes)

    def narrow(self) -> Place:
        """The same floats as vectors of WIDTH."""
        return Place(self.builder, self.pointer, ir.VectorType(_F32, WIDTH), WIDTH)


class Kernel:
    """A function of pointers that is called for every tile: `void name(n_tiles, n_repeated, pointers…)`.

    sizes: vectors that a tile has behind each pointer; of a negative one so many vectors of bytes
    lanes: of a vector
    """

    def __init__(self, name: str, sizes: Sequence[int | Singles | Repeated], lanes: int = LANES) -> None:
        self.name, self.sizes, self.lanes = name, sizes, lanes
        self.floats, self.bytes = ir.VectorType(_F32, lanes), ir.VectorType(_I8, lanes)
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, *[_POINTER] * len(sizes)])
        self.function = ir.Function(self.module, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def room(self, count: int) -> Place:
        """Vectors of its own."""
        with self.builder.goto_entry_block():  # once, not with every tile
            room = self.builder.alloca(self.floats, ir.Constant(_I32, count))
        room.type = _POINTER  # of anything: single floats are stored there too
        return Place(self.builder, room, self.floats, self.lanes)

    def constant(self, number: float) -> Floats:
        """The same in every lane."""
        return Floats(self.builder, ir.Constant(self.floats, [_single(number)] * self.lanes))

    def sqrt(self, of: Floats) -> Floats:
        """Square roots."""
        return self._call("llvm.sqrt", of)

    def abs(self, of: Floats) -> Floats:
        """Without signs."""
        return self._call("llvm.fabs", of)

    def _call(self, name: str, of: Floats) -> Floats:
        full, kind = f"{name}.v{self.lanes}f32", ir.FunctionType(self.floats, [self.floats])
        declared = self.module.globals.get(full) or ir.Function(self.module, kind, full)
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
        phis = [builder.phi(value.value.type) for value in values]
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
        return Floats(self.builder, _spread(self.builder, single, self.lanes))

    def turned(self, rows: Sequence[Floats]) -> list[Floats]:
        """WIDTH vectors of WIDTH as WIDTH others: lane a of vector b becomes lane b of vector a."""
        found, width = [row.value for row in rows], 1
        while width < WIDTH:  # swaps ever larger squares that lie off the diagonal
            upper = [lane if not lane & width else WIDTH + lane - width for lane in range(WIDTH)]
            lower = [lane + width if not lane & width else WIDTH + lane for lane in range(WIDTH)]
            for number in range(WIDTH):
                if not number & width:
                    pair = found[number], found[number + width]
                    found[number], found[number + width] = (self.shuffled(*pair, lanes) for lanes in (upper, lower))
            width *= 2
        return [Floats(self.builder, value) for value in found]

    def beside(self, parts: Sequence[Floats]) -> Floats:
        """Vectors as a longer one: one as it is, or two."""
        if len(parts) == 1:
            return parts[0]
        first, second = (part.value for part in parts)
        return Floats(self.builder, self.shuffled(first, second, range(2 * first.type.count)))

    def spread(self, single: Any, lanes: int) -> Any:  # noqa: ANN401 - values of llvmlite
        """A float in every lane of a vector."""
        return _spread(self.builder, single, lanes)

    def shuffled(self, first: Any, second: Any, lanes: Sequence[int]) -> Any:  # noqa: ANN401 - values of llvmlite
        """Lanes of two vectors, those of the second counted behind those of the first."""
        kind = ir.VectorType(_I32, len(lanes))
        return self.builder.shuffle_vector(first, second, ir.Constant(kind, list(lanes)))

    def compiled(self, tile: Callable[..., None]) -> Compiled:
        """tile(*places) does one tile. The function for this processor."""
        count, repeated, *pointers = self.function.args

        def each(index: Index) -> list[Floats]:
            places = []
            for pointer, size in zip(pointers, self.sizes, strict=True):
                number, kind = index, self.floats
                if isinstance(size, Repeated):
                    number = self.builder.urem(index, repeated)
                elif isinstance(size, Singles):
                    kind = _F32
                elif size < 0:
                    kind = self.bytes
                each_has = abs(size) if isinstance(size, int) else size.count
                offset = self.builder.mul(number, ir.Constant(_I64, each_has))
                places.append(Place(self.builder, pointer, kind, self.lanes).from_(offset))
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
