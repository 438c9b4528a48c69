"""Parts of stored tensors, in the order in which a GGUF tensor holds them: halves, transposes, regrouped heads.

A view is made of facts alone: a run of rows is the same file at another offset, a transpose is one with strides. So
nothing is loaded to make one, and the streaming writer reads its rows in chunks as it reads any other tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.facts import TensorFact

View = Callable[["TensorFact", Mapping[str, int]], "tuple[TensorFact, ...]"]
"""A stored tensor and the named dimensions -> its parts, in order."""


def rows(fact: TensorFact, start: int, count: int) -> TensorFact:
    """Rows start to start + count of a tensor seen as the matrix of its last dimension; of a vector, elements."""
    shape = (count, fact.shape[-1]) if len(fact.shape) > 1 else (count,)
    row_bytes = fact.n_bytes // math.prod(fact.shape) * math.prod(shape[1:])
    return dataclasses.replace(fact, shape=shape, offset=fact.offset + start * row_bytes, n_bytes=count * row_bytes)


def part(index: int, of: int) -> View:
    """One of `of` equal runs of rows: of a matrix, or of each matrix where three dimensions are stored."""

    def view(fact: TensorFact, _dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
        *outer, n_rows, _ = fact.shape
        count = n_rows // of
        return tuple(rows(fact, matrix * n_rows + index * count, count) for matrix in range(math.prod(outer)))

    return view


def grouped_heads(fact: TensorFact, dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
    """A fused projection that holds, for each key head, its queries, its key and its value; a weight or a bias.

    llama.cpp's `attn_qkv` has all queries, then all keys, then all values.
    """
    groups, head = dims["kv_heads"], dims["head"]
    group = fact.shape[0] // groups
    runs = ((0, group - 2 * head), (group - 2 * head, head), (group - head, head))
    return tuple(rows(fact, at * group + start, count) for start, count in runs for at in range(groups))


def transposed(first: int = 0, step: int = 1) -> View:
    """Columns first, first + step, … as rows; of a matrix, or of each matrix where three dimensions are stored."""

    def view(fact: TensorFact, _dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
        *outer, n_rows, n_columns = fact.shape
        item = fact.n_bytes // math.prod(fact.shape)
        shape = (n_columns // step, n_rows)
        return tuple(
            dataclasses.replace(
                fact,
                shape=shape,
                offset=fact.offset + (matrix * n_rows * n_columns + first) * item,
                n_bytes=math.prod(shape) * item,
                strides=(step, n_columns),
            )
            for matrix in range(math.prod(outer))
        )

    return view


def every(first: int, step: int) -> View:
    """Rows first, first + step, … of a matrix, or of each matrix where three dimensions are stored.

    The only view that takes scales along: those of rows of their own.
    """

    def view(fact: TensorFact, _dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
        *outer, n_rows, _ = fact.shape
        return tuple(_every(fact, matrix * n_rows + first, step, n_rows // step) for matrix in range(math.prod(outer)))

    return view


def _every(fact: TensorFact, first: int, step: int, count: int) -> TensorFact:
    """`count` rows of a tensor seen as the matrix of its last dimension, and their scales."""
    n_columns = fact.shape[-1]
    row_bytes = fact.n_bytes * n_columns // fact.n_elements
    scaling = fact.scaling
    if scaling is not None and scaling.rows == 1 and len(scaling.fact.shape) > 1:
        scaling = dataclasses.replace(scaling, fact=_every(scaling.fact, first, step, count))
    return dataclasses.replace(
        fact,
        shape=(count, n_columns),
        offset=fact.offset + first * row_bytes,
        n_bytes=count * row_bytes,
        strides=(step * n_columns, 1),
        scaling=scaling,
    )


def columns(first: int, step: int) -> View:
    """Columns first, first + step, … of a matrix."""

    def view(fact: TensorFact, _dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
        n_rows, n_columns = fact.shape
        item = fact.n_bytes // math.prod(fact.shape)
        shape = (n_rows, n_columns // step)
        strides = (n_columns, step)
        offset = fact.offset + first * item
        part = dataclasses.replace(fact, shape=shape, offset=offset, n_bytes=math.prod(shape) * item, strides=strides)
        return (part,)

    return view


def folded(width: str) -> View:
    """A vector as a matrix with rows of that dimension."""

    def view(fact: TensorFact, dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
        return (dataclasses.replace(fact, shape=(fact.n_elements // dims[width], dims[width])),)

    return view
