"""GGUF files with damage in every field: a seeded mutator that knows the format, and a run of the reader over them.

    python -m support.gguf_fuzz --cases 100000 --seed 1 --keep DIR      (in tests/, PYTHONPATH the repository)

The reader may refuse a file with a ModelError and nothing else, in a second, within the memory that the limit leaves.
A case that does anything else is kept in DIR, and named with its seed and number; `--only N` runs that one alone.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from support.gguf_fields import ARRAY, STRING, Atom, File, seeds, text, u32, u64

from runtime.errors import ModelError, PacklightError
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

HOSTILE = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    32,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**61,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
CASE_SECONDS = 2.0
"""Of processor time, which other work on the machine does not lengthen; the whole run has a limit of its own."""
ALLOWANCE = 8 << 20
"""Bytes of address space that a run may grow by, of files of some kilobytes: the arenas of Python's allocator."""
WARM_UP, ALLOWED_BEFORE = 500, 1 << 30
"""Cases after which the limit holds, and what is allowed until then, and to a plan, which imports much."""


def _number(atom: Atom) -> int:
    """The value of a field that may have been swapped with another."""
    return atom.value if isinstance(atom.value, int) else len(atom.value)


def _an_integer(rng: random.Random, file: File) -> None:
    integers = [atom for atom in file.atoms() if atom.what == "integer"]
    atom = rng.choice(integers)
    near = _number(atom) + rng.choice((-1, 1, 8, 32))
    atom.value = rng.choice((*HOSTILE, near, len(file.data), rng.getrandbits(64)))


def _an_entry_twice(rng: random.Random, file: File) -> None:
    entries = rng.choice((file.values, file.tensors))
    if entries:
        again = [atom.copy() for atom in rng.choice(entries)]
        entries.insert(rng.randrange(len(entries) + 1), again)
        _recount(rng, file)


def _entries_swapped(rng: random.Random, file: File) -> None:
    entries = rng.choice((file.values, file.tensors))
    if len(entries) > 1:
        one, other = rng.sample(range(len(entries)), 2)
        entries[one], entries[other] = entries[other], entries[one]


def _fields_swapped(rng: random.Random, file: File) -> None:
    one, other = rng.sample(file.atoms(), 2)
    one.what, one.layout, one.value, other.what, other.layout, other.value = (
        other.what, other.layout, other.value, one.what, one.layout, one.value
    )  # fmt: skip


def _an_entry_less(rng: random.Random, file: File) -> None:
    entries = rng.choice((file.values, file.tensors))
    if entries:
        entries.pop(rng.randrange(len(entries)))
        _recount(rng, file)


def _a_nested_array(rng: random.Random, file: File) -> None:
    depth, inner = rng.choice((1, 2, 50, 2000)), rng.choice((0, 1, 2**32, 2**63))
    nest = [atom for _ in range(depth) for atom in (u32(ARRAY), u64(inner))]
    file.values.append([*text("nested"), u32(ARRAY), *nest])
    _recount(rng, file)


def _dimensions_that_wrap(rng: random.Random, file: File) -> None:
    dims = rng.choice(
        ([2**32, 2**32], [2**63, 2], [2**64 - 1] * 4, [2**16] * 4, [3, 2**62 + 1], [2**61, 8], [0, 2**63])
    )
    file.tensors.append([*text("wraps"), u32(len(dims)), *map(u64, dims), u32(rng.choice((0, 1, 8, 12))), u64(0)])
    _recount(rng, file)


def _offsets_that_meet(rng: random.Random, file: File) -> None:
    """A tensor begins where another one does, or inside it, or every tensor at one place."""
    if len(file.tensors) > 1:
        one, other = rng.sample(file.tensors, 2)
        one[-1].value = _number(other[-1]) + rng.choice((0, 32, -32))
        if rng.random() < 0.3:
            for entry in file.tensors:
                entry[-1].value = one[-1].value


def _a_long_array(rng: random.Random, file: File) -> None:
    """More elements than anybody has, of few bytes each, some of which are there."""
    kind, count = rng.choice((0, 1, 7, STRING)), rng.choice((4000, 2**20, 2**31, 2**60))
    data = bytes(rng.choice((0, 4000, 8 * 1000)))
    file.values.append([*text("long"), u32(ARRAY), u32(kind), u64(count), Atom("bytes", "", data)])
    _recount(rng, file)


def _a_name(rng: random.Random, file: File) -> None:
    entry = rng.choice(file.values + file.tensors or [file.head])
    names = (
        b"",
        b"\xff",
        b"\0",
        b"a" * 70000,
        "é\n".encode(),
        b"general.alignment",
        b"split.count",
        b"general.architecture",
    )
    entry[:2] = text(rng.choice(names))


def _recount(rng: random.Random, file: File) -> None:
    """Mostly the counts are right again, so that the reader comes as far as the damage."""
    if rng.random() < 0.8:
        file.head[2].value, file.head[3].value = len(file.tensors), len(file.values)


STRUCTURED: tuple[Callable[[random.Random, File], None], ...] = (
    _an_integer, _an_integer, _an_integer, _an_entry_twice, _entries_swapped, _fields_swapped, _an_entry_less,
    _a_nested_array, _dimensions_that_wrap, _offsets_that_meet, _a_long_array, _a_name,
)  # fmt: skip


def _bytes_damaged(rng: random.Random, raw: bytearray) -> None:
    """Flips, a cut, or bytes that are too many: most of them in the header."""
    end = min(len(raw), rng.choice((64, 512, len(raw))))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(end, 1))
        way = rng.randrange(4)
        if way == 0 and raw:
            raw[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            raw[at : at + 4] = struct.pack("<I", rng.choice(HOSTILE) % 2**32)
        elif way == 2:
            del raw[at : at + rng.choice((1, 7, 8, len(raw)))]
        else:
            raw[at:at] = rng.randbytes(rng.choice((1, 8, 32)))
        end = min(end, len(raw))


def mutated(seed: int, number: int, sources: list[File]) -> bytes:
    """The bytes of one case: always the same for the same seed and number."""
    rng = random.Random(f"{seed}:{number}")
    file = rng.choice(sources).copy()
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(STRUCTURED)(rng, file)
    raw = bytearray(file.encoded())
    if rng.random() < 0.35:
        _bytes_damaged(rng, raw)
    return bytes(raw)


def read(path: Path, size: int) -> None:
    """Read all that the reader gives, and look whether it can be. Raises what the reader raises, or AssertionError."""
    for entry in read_gguf_metadata(path):
        if entry.type == "ARRAY":
            for _ in entry.value:
                pass
    spans = sorted((fact.offset, fact.n_bytes) for fact in read_gguf_facts(path, "").tensors.values())
    end = 0
    for offset, n_bytes in spans:
        if offset < end or n_bytes <= 0:
            raise AssertionError("tensors overlap")
        end = offset + n_bytes
    if end > size:
        raise AssertionError("a tensor ends behind the file")


def plan(path: Path, _size: int) -> None:
    """What `packlight plan` and `export` make of a file before they read a weight."""
    from exporter.report.modelfile import Chat, modelfile
    from targets.base import EmitOptions
    from targets.gguf.outline import outlines
    from targets.gguf.plan import make_plan

    facts = read_gguf_facts(path, "")
    outlines(facts, ["q8_0", "q4_k_m"])
    made, _ = make_plan(facts, EmitOptions("q4_0"))
    if made is not None:
        name = made.name.file_name("q4_0")
        if "/" in name or not name.isprintable() or len(name.encode()) > 255:
            raise AssertionError(f"a file cannot be called {name!r}")
        modelfile(name, 64, Chat.of_gguf({entry.key: entry.value for entry in read_gguf_metadata(path)}))


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {CASE_SECONDS} s")


def _limit_memory(n_bytes: int) -> None:
    """From here on the address space grows by no more than so many bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.RLIM_INFINITY))


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Every case; yields what went wrong, and at last how many there were."""
    sources, path = seeds(), arguments.keep / "case.gguf"
    look, refused, accepted = (plan if arguments.plan else read), {}, 0
    signal.signal(signal.SIGPROF, _too_slow)
    _limit_memory(ALLOWED_BEFORE)
    numbers = range(arguments.cases) if arguments.only is None else (arguments.only,)
    for number in numbers:
        if number == WARM_UP and not arguments.plan:
            _limit_memory(ALLOWANCE)
        raw = mutated(arguments.seed, number, sources)
        path.unlink(missing_ok=True)  # what is cut and written anew goes to the disk at once, at least on ext4
        path.write_bytes(raw)
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        try:
            look(path, len(raw))
            accepted += 1
        except ModelError as error:
            kind = str(error).removeprefix(f"{path}: ").split(" ", 2)[:2]
            refused[" ".join(kind)] = refused.get(" ".join(kind), 0) + 1
            if not str(error).isprintable() or len(str(error)) > 2000:
                yield f"seed {arguments.seed}, case {number}: not one short line: {str(error)[:200]!r}"
        except PacklightError:
            refused["unsupported"] = refused.get("unsupported", 0) + 1
        except BaseException:  # noqa: BLE001  whatever it is, it is what we look for
            kept = arguments.keep / f"seed-{arguments.seed}-case-{number}.gguf"
            kept.write_bytes(raw)
            yield f"seed {arguments.seed}, case {number}, kept as {kept}:\n{traceback.format_exc()[-2000:]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    path.unlink(missing_ok=True)
    yield f"cases {len(numbers)} accepted {accepted} refused {sum(refused.values())} ways {len(refused)}"


def main() -> int:
    """Print what was found; 1 where a case went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--plan", action="store_true", help="plan an export too, without the limit of memory")
    parser.add_argument("--keep", type=Path, required=True)
    arguments = parser.parse_args()
    lines = list(run(arguments))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(len(lines) > 1)


if __name__ == "__main__":
    sys.exit(main())
