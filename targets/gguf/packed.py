"""Arrays of a GGUF header as they lie in the file: an element becomes a Python object when it is asked for.

A list of a million one-byte numbers takes eight million bytes, one of short texts six times the file: a file of unknown
origin would decide how much memory its reader takes. These take the array's own bytes, texts four more for each.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator


class Packed(Sequence[Any]):
    """Elements of one type, equal to any sequence of equal elements.

    raw: the elements as the file has them, what follows an array's count
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @abstractmethod
    def _element(self, index: int) -> Any:  # noqa: ANN401  a number, a text, or bytes
        """The element at an index that is in range."""

    @overload
    def __getitem__(self, index: int) -> Any: ...  # noqa: ANN401
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        indices = range(len(self))[index]
        return [self._element(one) for one in indices] if isinstance(indices, range) else self._element(indices)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bytes) or not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} elements)"


class PackedNumbers(Packed):
    """Numbers or booleans, little-endian. letter: struct's for one of them."""

    def __init__(self, raw: bytes, letter: str) -> None:
        super().__init__(raw)
        self._layout = struct.Struct(f"<{letter}")

    def __len__(self) -> int:
        return len(self.raw) // self._layout.size

    def __iter__(self) -> Iterator[Any]:
        return (value for (value,) in self._layout.iter_unpack(self.raw))

    def _element(self, index: int) -> Any:  # noqa: ANN401
        return self._layout.unpack_from(self.raw, index * self._layout.size)[0]


class PackedTexts(Packed):
    """Texts, each behind its length of eight bytes. starts: where in `raw` each begins, its length first."""

    def __init__(self, raw: bytes, starts: array[int]) -> None:
        super().__init__(raw)
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str | bytes]:
        return (self._element(index) for index in range(len(self)))

    def _element(self, index: int) -> str | bytes:
        end = self._starts[index + 1] if index + 1 < len(self._starts) else len(self.raw)
        return decoded(self.raw[self._starts[index] + 8 : end])


def decoded(raw: bytes) -> str | bytes:
    """Text where it is UTF-8, else the bytes: some vocabularies have pieces that are none, and a copy is exact."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
