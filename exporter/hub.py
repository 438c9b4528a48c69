"""The Hugging Face hub: what is asked of it, and its errors in one line."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ModelError
from targets.facts import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

AT_A_TIME = 8
"""Requests."""
# Patterns of huggingface_hub match across slashes, so subfolders have to be left out by name. All but those that begin
# with a 1: sentence-transformers says in 1_Pooling how an embedding is made. Nothing else wanted begins so.
_SUBFOLDERS = ["[!1]*/*", "1*/*.py"]


def repository_files(model: str, revision: str | None) -> list[str]:
    """Names of the files at the top of a hub repository; empty where the hub cannot be asked."""
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(model, revision=revision)
    except hub_errors():
        return []
    return [name for name in names if "/" not in name]


def download(model: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """The snapshot of a hub repository in the ordinary cache. wanted: patterns of files. Raises ModelError."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(wanted),
                ignore_patterns=_SUBFOLDERS,
            )
        )
    except hub_errors() as error:
        # A cache that another program filled can lack files that we would like but do not need.
        partial = getattr(error, "snapshot_path", None)
        if isinstance(error, errors.LocalEntryNotFoundError) and partial:
            return Path(partial)
        raise ModelError(why(model, revision, error)) from error


def write_headers(model: str, commit: str, names: Sequence[str], directory: Path) -> None:
    """Write safetensors files as long as the hub's, of which the headers alone are asked for: a hole follows.

    names: of files of the repository. Raises ModelError where the hub does not give them.
    """
    import huggingface_hub
    from huggingface_hub import errors

    hub = huggingface_hub.HfApi()
    failures: tuple[type[Exception], ...] = (*hub_errors(), errors.SafetensorsParsingError)

    def write(name: str) -> None:
        found = hub.parse_safetensors_file_metadata(model, name, revision=commit)
        said = {
            key: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
            for key, one in found.tensors.items()
        }
        header = json.dumps({"__metadata__": found.metadata, **said} if found.metadata else said).encode()
        with (directory / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + max((one.data_offsets[1] for one in found.tensors.values()), default=0))

    try:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(write, names))
    except failures as error:
        raise ModelError(why(model, commit, error)) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its HTTP library differs between versions, and Xet raises RuntimeError."""
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]
    return (http_error, errors.EntryNotFoundError, OSError, ValueError, RuntimeError)


def why(model: str, revision: str | None, error: Exception) -> str:
    """One line for a failed download."""
    from huggingface_hub import constants, errors

    named = "set" if os.environ.get("HF_TOKEN") else "not set"
    if isinstance(error, errors.GatedRepoError):
        return f"{model}: is gated; accept its terms at {constants.ENDPOINT}/{model}, then set HF_TOKEN (now {named})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model}: has no revision '{shown(revision)}'; name a branch, tag or commit that it has"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{model}: no such directory here and no such model on the hub; check the spelling, "
            f"or set HF_TOKEN for a private one (now {named})"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{model}: no such directory here and not a hub id ({shown(error, 160)}); check the spelling"
    if constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError):
        at = f" at revision '{shown(revision)}'" if revision else ""
        return (
            f"{model}: no such directory here and not in the cache{at} ({constants.HF_HUB_CACHE}), and "
            "HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE or name a directory"
        )
    cause = error.__cause__ or error
    reason = shown(" ".join(f"{type(cause).__name__}: {cause}".split()), 160)
    return f"{model}: cannot be downloaded ({reason}); check the network, or name a directory"
