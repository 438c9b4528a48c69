"""Every error that packlight raises on purpose, in one tree.

PacklightError
├── UserError            bad input or usage; exit status 2
│   ├── ModelError       the MODEL cannot be used: what, where, what to do
│   ├── UnsupportedError a combination that a target cannot express
│   ├── ArtifactError    an artifact or its manifest cannot be used
│   └── HostError        the machine that was to measure is not reached, or lacks something
├── CheckFailed          a budget or a parity check failed; exit status 1
└── EngineError          the engine (llama.cpp, …) failed in a way that the user did not cause
    ├── OutOfMemory      the process went over its memory cap
    └── TimedOut         the process took longer than it was given
"""

from __future__ import annotations


def said_of(error: OSError) -> str:
    """A full disk, a directory without permission, in one line."""
    return f"{error.filename or 'writing'}: {error.strerror or error}"


def in_one_line(error: BaseException, most: int = 200) -> str:
    """What a library's error says, which may be a page, in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


class PacklightError(Exception):
    """Root of the tree. `exit_status` is what the command line returns for it."""

    exit_status = 2


class UserError(PacklightError):
    """Bad input or usage. The message is one line: what is wrong, where, what to do."""


class ModelError(UserError):
    """The MODEL cannot be used."""


class UnsupportedError(UserError):
    """The model, recipe and target do not go together. Carries every problem found, one a line."""


class ArtifactError(UserError):
    """An artifact or its manifest is missing, damaged or of another version."""


class HostError(UserError):
    """A machine that was to measure is not reached, or has not what that takes."""


class CheckFailed(PacklightError):
    """A budget or a parity check failed."""

    exit_status = 1


class EngineError(PacklightError):
    """The engine failed."""

    exit_status = 1


class OutOfMemory(EngineError):
    """The measured process went over its memory cap; `phase` is the last phase that it reached."""

    def __init__(self, message: str, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class TimedOut(EngineError):
    """The measured process took longer than it was given; `phase` is the last phase that it reached."""

    def __init__(self, message: str, phase: str) -> None:
        super().__init__(message)
        self.phase = phase
