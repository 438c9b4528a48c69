"""Small GGUF files of many kinds of model, for what presets give their tensors: names, shapes and metadata are real.

llama-quantize reads such a file as well: it looks at hyper-parameters and tensors, at no tokenizer and at no graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.checkpoint import resolve
from targets.base import TypeChoice
from targets.gguf import header
from targets.gguf.imatrix import ImportanceMatrix, Sums, write_imatrix
from targets.gguf.keyvalue import float32, string, uint32
from targets.gguf.plan import read_content
from targets.gguf.types import TYPES

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 4


@dataclass(frozen=True)
class Kind:
    """A model. Every matrix has ROWS rows, which is nothing to a preset.

    hidden, ffn: columns of matrices; experts: of a layer, beside one that is always asked; 0 for none
    fused: q, k and v are one matrix; every: so manieth layer has attention
    encoder: with tables of positions and types, norms behind, and a classifier's head
    """

    arch: str = "llama"
    layers: int = 16
    hidden: int = 512
    ffn: int = 768
    heads: int = 8
    kv_heads: int = 2
    experts: int = 0
    tied: bool = True
    fused: bool = False
    every: int = 1
    encoder: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes in torch order, by name."""
        wide, narrow = (ROWS, self.hidden), (ROWS, self.ffn)
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": wide, "output_norm.weight": (self.hidden,)}
        if not self.tied:
            found["output.weight"] = wide
        if self.encoder:
            found |= {"position_embd.weight": wide, "token_types.weight": wide, "token_embd_norm.weight": wide[1:]}
            found |= {"cls.weight": wide, "cls.bias": wide[:1], "cls.output.weight": wide}
        attention = ("attn_qkv",) if self.fused else ("attn_q", "attn_k", "attn_v")
        for layer in range(self.layers):
            own: dict[str, tuple[int, ...]] = {}
            if layer % self.every == 0:
                own = dict.fromkeys((*attention, "attn_output"), wide)
            if self.experts:
                stack = (self.experts, *wide)
                own |= {"ffn_gate_inp": (self.experts, self.hidden), "ffn_gate_exps": stack, "ffn_up_exps": stack}
                own |= {"ffn_down_exps": (self.experts, *narrow), "ffn_down_shexp": narrow, "ffn_up_shexp": wide}
            else:
                own |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": narrow}
            if self.encoder:
                own |= {"attn_output_norm": wide[1:], "layer_output_norm": wide[1:]}
                found[f"blk.{layer}.attn_q.bias"] = wide[:1]
            found |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
            found[f"blk.{layer}.attn_norm.weight"] = (self.hidden,)
        return found


KINDS = {
    "llama": Kind(),
    "odd-layers": Kind(layers=13, kv_heads=8, tied=False),
    "narrow": Kind(hidden=288, ffn=544, tied=False),
    "no-blocks": Kind(layers=2, hidden=256, ffn=100),
    "70b": Kind(layers=80, tied=False),
    "eight-experts": Kind(experts=8, tied=False),
    "four-experts": Kind(experts=4, kv_heads=8),
    "fused": Kind(arch="phi2", kv_heads=8, tied=False, fused=True),
    "falcon": Kind(arch="falcon", layers=32, kv_heads=1, tied=False, fused=True),
    "hybrid": Kind(layers=20, tied=False, every=3),
    "bert": Kind(arch="bert", layers=6, hidden=384, ffn=1536, heads=12, kv_heads=12, encoder=True),
    "modern-bert": Kind(arch="modern-bert", layers=22, hidden=768, ffn=1024, kv_heads=8, fused=True, encoder=True),
    "qwen2-70b": Kind(arch="qwen2", layers=80, kv_heads=8),
}


EXPERTS = Kind(layers=2, hidden=256, ffn=256, experts=3, tied=False)
"""Small enough for the bytes of every expert, the last of which was never asked."""

NAMED: dict[str, tuple[list[str], TypeChoice]] = {
    "pure": (["--pure"], TypeChoice(pure=True)),
    "output": (["--output-tensor-type", "q8_0"], TypeChoice(output="q8_0")),
    "embedding": (["--token-embedding-type", "q5_0"], TypeChoice(embedding="Q5_0")),
    "both": (
        ["--token-embedding-type", "q5_0", "--output-tensor-type", "f16"], TypeChoice(embedding="q5_0", output="f16"),
    ),
    "pure-output": (["--pure", "--output-tensor-type", "q8_0"], TypeChoice(pure=True, output="q8_0")),
    "rules": (
        ["--tensor-type", r"blk\.[01]\.ffn_down=q5_1", "--tensor-type", "attn=q8_0", "--tensor-type", "ffn_down=q4_1"],
        TypeChoice(rules=((r"blk\.[01]\.ffn_down", "q5_1"), ("attn", "q8_0"), ("ffn_down", "q4_1"))),
    ),
    "rule-of-table": (
        ["--tensor-type", "token_embd=q4_0", "--output-tensor-type", "q5_0"],
        TypeChoice(rules=(("token_embd", "q4_0"),), output="q5_0"),
    ),
}  # fmt: skip
"""Options of llama-quantize, and the same of ours, whose types fit every one of KINDS but "no-blocks"."""


def write_model(path: Path, kind: Kind) -> None:
    """The file, its weights float32, the same on every machine."""
    arch = kind.arch
    metadata = [
        string("general.architecture", arch), string("general.name", "kind"), uint32("general.file_type", 0),
        uint32(f"{arch}.context_length", 512), uint32(f"{arch}.block_count", kind.layers),
        uint32(f"{arch}.embedding_length", kind.hidden), uint32(f"{arch}.feed_forward_length", kind.ffn),
        uint32(f"{arch}.attention.head_count", kind.heads), uint32(f"{arch}.attention.head_count_kv", kind.kv_heads),
        uint32(f"{arch}.rope.dimension_count", kind.hidden // kind.heads), uint32(f"{arch}.vocab_size", ROWS),
        float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
        float32(f"{arch}.attention.layer_norm_epsilon", 1e-5),
    ]  # fmt: skip
    if kind.experts:
        metadata += [uint32(f"{arch}.expert_count", kind.experts), uint32(f"{arch}.expert_used_count", 2)]
    placed = header.place([(name, shape, TYPES["F32"]) for name, shape in kind.tensors().items()])
    generator = np.random.Generator(np.random.PCG64(8))
    with path.open("wb") as file:
        file.write(header.encode(metadata, placed))
        start = file.tell()
        for tensor in placed:
            file.seek(start + tensor.offset)
            file.write(bell(generator, tensor.shape).astype("<f4").tobytes())
        file.truncate(start + header.align(placed[-1].offset + placed[-1].n_bytes))


def importance_of(directory: Path, path: Path, form: str = "gguf") -> Path:
    """An importance matrix of a model's directory, at `path`; see `write_importance`."""
    content, _ = read_content(resolve(str(directory)))
    assert content is not None
    write_importance(path, {tensor.name: tensor.shape for tensor in content.tensors}, form)
    return path


def bell(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers summed to a bell shape: no library's normal() is needed. Float32."""
    return (generator.integers(-512, 512, (4, *shape)).sum(axis=0) / 32768).astype(np.float32)


def write_importance(path: Path, shapes: dict[str, tuple[int, ...]], form: str = "gguf") -> None:
    """An importance matrix of all matrices of layers, some columns a hundred times what others are.

    The last expert of each was never asked.
    """
    generator = np.random.Generator(np.random.PCG64(88))
    sums = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.startswith("blk."):
            continue
        experts = shape[0] if len(shape) > 2 else 1
        squares = (generator.integers(1, 1000, (experts, shape[-1])) ** 2 / 1000).astype(np.float32)
        counts = np.full(experts, 640, np.int64)
        if experts > 1:
            squares[-1], counts[-1] = 0, 0
        sums[name] = Sums(squares, counts)
    write_imatrix(path, ImportanceMatrix(sums, ("golden.txt",), 5, 128), form)
