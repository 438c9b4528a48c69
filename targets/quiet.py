"""Libraries that talk to their developers while they are loaded."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def no_log_below_error() -> Iterator[None]:
    """Without warnings in any log. torchao, which executorch brings and transformers then imports, writes some."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def no_log_of(name: str) -> Iterator[None]:
    """Without what one library logs, errors too."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
