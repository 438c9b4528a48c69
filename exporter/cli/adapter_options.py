"""Options about LoRA adapters. As `exporter.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  Typer reads the annotations at run time
from typing import Annotated

import typer

from exporter.cli.panels import JOB, NAME, RUN, option


@dataclass(frozen=True)
class AdapterJob:
    """A LoRA adapter, and its base."""

    adapter: Annotated[Path, typer.Argument(help="A directory that peft wrote.", metavar="ADAPTER", show_default=False)]
    base: Annotated[
        str | None,
        option("--base", "Its base model, a directory or a hub id; default what it names.", JOB, "MODEL"),
    ] = None
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", JOB, NAME)] = None
    trust_remote_code: Annotated[
        bool, option("--trust-remote-code", "Run Python code that MODEL carries; read it first.", RUN)
    ] = False


@dataclass(frozen=True)
class MergedOut:
    """Where the merged model goes."""

    out: Annotated[Path, option("--out -o", "Directory to write; it appears when all is done.", JOB, "OUT")]
    keep_dtype: Annotated[
        bool, option("--keep-dtype", "Round merged weights to the base's own type, as peft does.", JOB)
    ] = False


@dataclass(frozen=True)
class AdapterOut:
    """Where the adapter's file goes."""

    out: Annotated[Path, option("--out -o", "The file to write, such as adapter.gguf.", JOB, "FILE")]
