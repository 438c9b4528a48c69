"""Files of a model that parse and still hold something else than they should."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def damage_in(file: Path) -> Iterator[None]:
    """Turn what an entry of the wrong kind makes Python raise into a ModelError that names the file.

    JSON that parses can still hold a number where an object belongs, in any of a hundred places.
    """
    try:
        yield
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{file}: an entry is not what it should be ({what}); download or save the file again"
        ) from error
