"""What a method that chooses codes by more than rounding asks of a target's quantization grid: `Grid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """The numbers that a file has of rows beside codes and what is a whole number, and what scales are of them.

    scales = steps * scale_by, offsets = steps * step_by + shifts * shift_by, as an engine computes them
    kind: the type of both in the file
    steps, shifts: (rows, units), float32; None where there are no shifts
    scale_by, step_by, shift_by: (rows, units, scales of a unit), float32; None for nothing
    """

    kind: Literal["float16", "bfloat16", "float32"]
    steps: Floats
    shifts: Floats | None
    scale_by: Floats
    step_by: Floats | None
    shift_by: Floats | None


class Fitted(Protocol):
    """Scales of rows: a weight is its code times the scale, plus the offset.

    scales, offsets: (rows, columns / weights of a scale), float32
    """

    @property
    def scales(self) -> Floats:
        """Steps between codes."""

    @property
    def offsets(self) -> Floats:
        """What is added."""


class Grid(Protocol):
    """A grid whose scales are chosen apart from the codes."""

    @property
    def name(self) -> str:
        """As the target calls it."""

    @property
    def block(self) -> int:
        """Weights that are fitted together."""

    @property
    def largest(self) -> int:
        """The largest code; the smallest is 0."""

    def fit(self, rows: Floats, importance: Floats | None = None) -> Fitted:
        """Scales for `rows`, shape (n, columns), columns whole blocks.

        importance: what the squared error in each column counts, shape (columns,); None counts all alike.
        Raises OverflowError for weights too large for the grid.
        """

    def fitted(self, packed: Bytes) -> Fitted:
        """The scales in packed rows."""

    # Any: each grid knows what it has fitted itself.
    def stored(self, fitted: object) -> Stored:
        """What of the scales may be learned, as it is."""

    def moved(self, fitted: object, steps: Floats, shifts: Floats | None) -> Fitted:
        """With other numbers in their place, as `stored` has them, each of which the file's type holds."""

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at the nearest code under the scales of `fit`."""

    def spread(self, per_scale: Floats, columns: slice | npt.NDArray[np.intp]) -> Floats:
        """Of (rows, scales) those of some columns, (rows, columns)."""

    def nearest(self, weights: Floats, scales: Floats, offsets: Floats) -> Bytes:
        """The code whose value is nearest; all three of one shape."""

    def values(self, codes: Bytes, scales: Floats, offsets: Floats) -> Floats:
        """What an engine makes of the codes, all three of one shape."""

    # Any: each grid packs what it has fitted itself.
    def pack(self, fitted: object, codes: Bytes) -> Bytes:
        """Packed rows, (rows, bytes of a row). codes: (rows, columns)."""

    def dequantize(self, packed: Bytes) -> Floats:
        """The weights in packed rows, (rows, columns), exactly as an engine computes them."""

    def tensors(self, name: str, packed: Bytes) -> dict[str, npt.NDArray[np.generic]]:
        """What the target's side file holds of a matrix."""
