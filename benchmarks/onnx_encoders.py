"""Encoders for benchmarks.onnx_peers: what users build today, and one measured thing a process.

    python -m benchmarks.onnx_encoders TASK OUT ARGUMENTS

See benchmarks.onnx_runs for the form. The peers begin with torch.onnx.export of the model as transformers loads it
(optimum has no exporter of its own any more), go through onnxruntime's transformer optimizer or not, and end in
quantize_dynamic: as it is by default, or per channel with 8-bit weights as Optimum's avx512_vnni configuration sets it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.onnx_runs import THREADS, _peak_bytes, main, model_file

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

LATENCY_TOKENS, LATENCY_RUNS, WARM_UP = 128, 60, 10
LENGTHS = (8, 16, 32, 64, 128, 256)
TEXTS_PER_LENGTH = 8
PEERS = {
    "fp32": (False, None), "fp32, optimizer": (True, None), "quantize_dynamic": (False, {}),
    "quantize_dynamic per channel": (False, {"per_channel": True}), "optimizer, quantize_dynamic": (True, {}),
    "optimizer, quantize_dynamic per channel": (True, {"per_channel": True}),
}  # fmt: skip
"""By name: whether the optimizer fuses the graph first, and what quantize_dynamic is told; None does not quantize."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17


def build(source: str, peer: str, directory: str) -> dict[str, Any]:
    """Write `model.onnx` of a peer into `directory`."""
    fuse, quantize = PEERS[peer]
    out = Path(directory) / "model.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "exported.onnx"
        _export(source, path)
        if fuse:
            from onnxruntime.transformers.optimizer import optimize_model

            config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            fused = optimize_model(str(path), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=0)
            path = Path(scratch) / "fused.onnx"
            fused.save_model_to_file(str(path))
        if quantize is None:
            out.write_bytes(path.read_bytes())
        else:
            import onnx
            from onnxruntime.quantization import quantize_dynamic

            # Shape inference stops at the fused operators and would leave the quantizer without a type.
            quantize_dynamic(path, out, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT}, **quantize)
    return {"model_bytes": out.stat().st_size}


def _export(source: str, path: Path) -> None:
    import torch
    from transformers import AutoModel

    # The optimizer knows the attention that is written out, not torch's fused one.
    model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state
            return hidden

    ids = torch.ones(2, 16, dtype=torch.long)
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in (*INPUTS, "last_hidden_state")}
    torch.onnx.export(
        Hidden().eval(), (ids, ids, torch.zeros_like(ids)), path, input_names=list(INPUTS),
        output_names=["last_hidden_state"], dynamic_axes=axes, dynamo=False, opset_version=OPSET,
    )  # fmt: skip


class Encoder:
    """An ONNX encoder in plain onnxruntime, default session options but for the threads."""

    def __init__(self, path: Path) -> None:
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3  # Errors only.
        self._np, self._session = np, ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]

    def hidden(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """The last hidden states of one text, shape (tokens, hidden)."""
        row = self._np.array([ids], self._np.int64)
        feeds = {"input_ids": row, "attention_mask": self._np.ones_like(row), "token_type_ids": row * 0}
        fed = {name: feeds[name] for name in self._inputs}
        states: npt.NDArray[np.float32] = self._session.run(["last_hidden_state"], fed)[0][0]
        return states


def latency(directory: str) -> dict[str, Any]:
    """Milliseconds of one text of LATENCY_TOKENS tokens, and the peak after the first one."""
    from runtime.worker import token_ids

    start = time.perf_counter()
    encoder = Encoder(model_file(Path(directory)))
    load_s, ids, times = time.perf_counter() - start, token_ids(30522, LATENCY_TOKENS), []
    encoder.hidden(ids)
    peak = _peak_bytes()
    for _ in range(WARM_UP + LATENCY_RUNS):
        start = time.perf_counter()
        encoder.hidden(ids)
        times.append(1e3 * (time.perf_counter() - start))
    return {"load_s": load_s, "peak_bytes": peak, "ms": times[WARM_UP:]}


def texts(source: str) -> list[list[int]]:
    """Token ids of topics of CPython's help, TEXTS_PER_LENGTH cut to each of LENGTHS tokens."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found, wanted = [], [length for length in LENGTHS for _ in range(TEXTS_PER_LENGTH)]
    names = iter(sorted(topics))
    for length in wanted:
        tokenizer.enable_truncation(length)
        found.append(next(ids for ids in (tokenizer.encode(topics[name]).ids for name in names) if len(ids) == length))
    return found


def cosine(source: str, directory: str) -> dict[str, Any]:
    """Least and mean cosine between the mean-pooled embeddings of a directory and those of float32 in torch."""
    import numpy as np
    import torch
    from transformers import AutoModel

    torch.set_num_threads(THREADS)
    encoder, values = Encoder(model_file(Path(directory))), []
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    for ids in texts(source):
        with torch.no_grad():
            a = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        b = encoder.hidden(ids).mean(0)
        values.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return {"texts": len(values), "min": min(values), "mean": float(np.mean(values))}


TASKS: dict[str, Callable[..., Any]] = {"build": build, "latency": latency, "cosine": cosine}


if __name__ == "__main__":
    main(sys.argv[1:], TASKS)
