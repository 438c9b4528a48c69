"""Pickled weights: which files they are, and the command that turns them into safetensors.

packlight never loads a pickle: loading one can run any code. The user can, in their own shell.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
from typing import Any

_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin")
# What a trainer leaves beside the weights.
_NOT_WEIGHTS = ("training_args.*", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "*trainer_state*")


def pickled_weights(names: list[str]) -> list[str]:
    """Those of a directory's file names that hold pickled weights; only the kind that transformers prefers."""
    for pattern in _PATTERNS:
        found = [
            name
            for name in fnmatch.filter(names, pattern)
            if not any(fnmatch.fnmatch(name, other) for other in _NOT_WEIGHTS)
        ]
        if found:
            return found
    return []


def conversion_command(source: str, destination: str, config: dict[str, Any], pickles: list[str]) -> str:
    """The shell command that loads pickled weights with transformers and saves them as safetensors.

    source: a directory or a hub id; destination: the directory to write; pickles: from `pickled_weights`
    """
    names = config.get("architectures") or [""]
    # The class is the file's own word: it goes into a command that the user will run only as a plain name.
    known = names[0].isascii() and names[0].isidentifier() and not names[0].startswith("_")
    model_class = names[0] if known else "AutoModelForCausalLM"
    if fnmatch.fnmatch(pickles[0], "pytorch_model*.bin"):
        imports, load = "", 's, dtype="auto"'
    else:  # transformers does not look for such a file by itself
        imports = "import os, torch; from transformers import AutoConfig; "
        state = f'torch.load(os.path.join(s, {_literal(pickles[0])}), map_location="cpu", weights_only=True)'
        load = f'None, config=AutoConfig.from_pretrained(s), state_dict={state}, dtype="auto"'
    code = (
        f"{imports}from transformers import {model_class} as M, AutoTokenizer as T; "
        f"s, d = {_literal(source)}, {_literal(destination)}; "
        f"M.from_pretrained({load}).save_pretrained(d); T.from_pretrained(s).save_pretrained(d)"
    )
    return f"python -c {shlex.quote(code)}"


def _literal(text: str) -> str:
    """A Python string literal in double quotes, so that the shell's single quotes hold the whole program."""
    return json.dumps(text, ensure_ascii=False)
