"""Options about the types of a GGUF file's tensors, and about importance matrices. As `exporter.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  Typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli.panels import COUNT, JOB, NAME, RUN, TYPES, option
from runtime.errors import UserError

if TYPE_CHECKING:
    from targets.base import TypeChoice


@dataclass(frozen=True)
class Types:
    """What the user says of types beside the preset."""

    imatrix: Annotated[
        Path | None,
        option("--imatrix", "Importance matrix, of 'packlight imatrix' or llama-imatrix.", TYPES, "FILE"),
    ] = None
    rule: Annotated[
        list[str] | None,
        option(
            "--rule",
            "A type for tensors whose names a regular expression is found in: 'ffn_down=q6_k'; repeatable, the first "
            "that is found counts.",
            TYPES,
            "PATTERN=TYPE",
        ),
    ] = None
    pure: Annotated[bool, option("--pure", "No mixture: every matrix gets the preset's base type.", TYPES)] = False
    output_type: Annotated[str | None, option("--output-type", "Of the output matrix: q8_0.", TYPES, "TYPE")] = None
    embedding_type: Annotated[
        str | None, option("--embedding-type", "Of the table of tokens: q8_0.", TYPES, "TYPE")
    ] = None

    def choice(self) -> TypeChoice:
        """For the library. Raises UserError for a rule without a type."""
        from targets.base import TypeChoice

        rules = tuple(map(_rule, self.rule or ()))
        return TypeChoice(rules, self.pure, self.output_type, self.embedding_type, self.imatrix)


def _rule(text: str) -> tuple[str, str]:
    """Its pattern and its type: what stands behind the last equals sign."""
    pattern, _, kind = text.rpartition("=")
    if not pattern or not kind:
        raise UserError(f"--rule {text}: is no PATTERN=TYPE; write 'ffn_down=q6_k', for example")
    return pattern, kind


@dataclass(frozen=True)
class ImatrixJob:
    """What to compute an importance matrix of, and on what."""

    model: Annotated[str, typer.Argument(help="A model directory or a hub id.", metavar="MODEL", show_default=False)]
    out: Annotated[Path, option("--out -o", "The file to write, such as imatrix.gguf.", JOB, "FILE")]
    text: Annotated[
        Path | None, option("--text", "Calibration text (UTF-8); default Python's own help.", JOB, "FILE")
    ] = None
    chunks: Annotated[
        int | None, option("--chunks", "At most so many pieces, from the beginning; default all.", JOB, COUNT, min=1)
    ] = None
    tokens: Annotated[int, option("--tokens", "Of a piece; default 512.", JOB, COUNT, min=16)] = 512
    form: Annotated[
        str | None, option("--format", "gguf, or dat for older llama.cpp; default by FILE's name.", JOB, NAME)
    ] = None
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", JOB, NAME)] = None
    overwrite: Annotated[bool, option("--overwrite", "Replace FILE.", JOB)] = False
    low_memory: Annotated[
        bool, option("--low-memory", "One layer at a time, weights on the disk beside FILE.", RUN)
    ] = False
    threads: Annotated[
        int | None, option("--threads", "Compute threads; default torch's own choice.", RUN, COUNT, min=1)
    ] = None
    trust_remote_code: Annotated[
        bool, option("--trust-remote-code", "Run Python code that MODEL carries; read it first.", RUN)
    ] = False
