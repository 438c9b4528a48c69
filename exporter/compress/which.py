"""Which matrices a recipe means: patterns of their names."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def matching(matrices: Mapping[str, Any], patterns: Sequence[str], key: str) -> dict[str, Any]:
    """Those whose name one of the patterns matches. key: of the recipe, for messages.

    Raises UserError for a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in matrices):
            near = difflib.get_close_matches(pattern, matrices, n=2, cutoff=0.3) or list(matrices)[:2]
            raise UserError(f"--recipe: {key} '{pattern}' matches no matrix; they are called {' or '.join(near)}")
    return {name: module for name, module in matrices.items() if any(fnmatchcase(name, one) for one in patterns)}


def excluding(matrices: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Those that no pattern matches. Raises UserError for a pattern that matches none, and where none is left."""
    out = matching(matrices, patterns, "exclude")
    found = {name: module for name, module in matrices.items() if name not in out}
    if not found:
        raise UserError("--recipe: exclude leaves no matrix; take a pattern out")
    return found
