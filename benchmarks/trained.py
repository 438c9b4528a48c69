"""A small Llama that is trained here, all of its widths multiples of 256: the case where every k-quant applies.

    python -m benchmarks.trained [--out DIR]        once, an hour on two cores; goes on where it was stopped

Text: the docstrings of CPython's library and of packages that constraints.txt pins, without the help topics that models
are calibrated and judged on. The tokenizer is SmolLM2's with a vocabulary of its own.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paths import MODELS, new_directory
from benchmarks.smollm2 import smollm2
from runtime.openmp import wait_briefly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

TRAINED = MODELS / "trained-llama-512"
PACKAGES = ("torch", "transformers", "numpy", "scipy", "sklearn", "sympy", "networkx", "huggingface_hub")
VOCAB, TOKENS, BATCH, STEPS = 8192, 256, 16, 1200
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "initializer_range": 0.02,
}  # fmt: skip
SHORTEST = 80
"""Characters of a docstring that is taken."""


def documents() -> list[str]:
    """Docstrings, each once, in the order of the files."""
    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / name for name in PACKAGES)]
    found: dict[str, None] = {}
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            if not {"test", "tests", "pydoc_data", "site-packages"} & set(parts):
                found.update(dict.fromkeys(_docstrings(file)))
    return list(found)


def _docstrings(file: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= SHORTEST:
                yield text


def trained(out: Path = TRAINED) -> Path:
    """The model's directory, made if it is not there."""
    if (out / "config.json").is_file():
        return out
    wait_briefly()
    import numpy as np
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    texts = documents()
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[number] for number in order]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    source = AutoTokenizer.from_pretrained(smollm2())
    tokenizer = source.train_new_from_iterator(texts, VOCAB)
    end = tokenizer.eos_token_id
    ids = [token for row in tokenizer(texts, verbose=False)["input_ids"] for token in [*row, end]]
    blocks = torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).view(-1, TOKENS)
    print(f"{len(texts):,} texts, {len(ids):,} tokens, SHA-256 {digest}", flush=True)
    set_seed(0)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **special))
    _train(model, blocks, out.with_name(f".{out.name}.training"))
    with new_directory(out) as partial:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record = {"sha256": digest, "texts": len(texts), "tokens": len(ids), "steps": STEPS, "batch": BATCH}
        (partial / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        (partial / "README.md").write_text("---\nlicense: apache-2.0\n---\nTrained by benchmarks.trained.\n")
    return out


def _train(model: nn.Module, blocks: Tensor, work: Path) -> None:
    """Train; checkpoints go to `work`, and a later call goes on from the last one."""
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Blocks(Dataset[Any]):
        def __len__(self) -> int:
            return len(blocks)

        def __getitem__(self, number: int) -> dict[str, Any]:
            return {"input_ids": blocks[number], "labels": blocks[number]}

    arguments = TrainingArguments(
        output_dir=str(work), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=2e-3,
        lr_scheduler_type="cosine", warmup_steps=STEPS // 12, weight_decay=0.1, adam_beta2=0.95, bf16=True,
        use_cpu=True, save_steps=100, save_total_limit=1, logging_steps=20, report_to=[], seed=0,
    )  # fmt: skip
    last = get_last_checkpoint(str(work)) if work.is_dir() else None
    Trainer(model=model, args=arguments, train_dataset=Blocks()).train(resume_from_checkpoint=last)


def main() -> None:
    """Train, and print the directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TRAINED)
    print(trained(parser.parse_args().out))


if __name__ == "__main__":
    main()
