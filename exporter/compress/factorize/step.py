"""The factorize step of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.compress.factored import Factored, factored_modules
from exporter.compress.factorize.svd import svd
from exporter.compress.factorize.svd_llm import svd_llm
from exporter.compress.walk import Walk
from exporter.compress.which import matching
from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from exporter.compress.subject import Subject
    from exporter.steps import Factorize

    Floats = npt.NDArray[np.float32]

MULTIPLE = 32
"""Ranks are rounded to it: rows of the left matrix are then whole blocks of every grid of 32."""


def run(step: Factorize, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. Layer by layer: each sees what the factorized ones before it give."""
    halves = {id(half) for _, pair in factored_modules(subject.model) for half in (pair.left, pair.right)}
    known = {name: module for name, module in subject.matrices() if id(module) not in halves}
    if not known:
        raise UserError(
            "--recipe: factorize: every matrix is two already; take that step out, or lower the first's keep"
        )
    chosen = matching(known, step.matrices, "matrices")
    names = {id(module): name for name, module in chosen.items()}
    walk, whole, two = Walk(subject.model, subject.chunks), 0, 0
    for number, layer in enumerate(walk.layers):
        subject.progress("factorize", number, len(walk.layers))
        for below, gram in walk.observe(number).hessians.items():
            module = layer.get_submodule(below)
            if id(module) not in names:
                continue
            made = _factored(step, module, gram.numpy())
            if made is None:
                whole += 1
            else:
                layer.set_submodule(below, made)
                two += 1
        walk.advance(number)
    subject.progress("factorize", len(walk.layers), len(walk.layers))
    if whole:
        subject.notes.append(f"factorize: {whole} of {len(chosen)} matrices are whole, two would not be smaller")
    if two:
        what = "ONNX and TorchScript run them as two, GGUF and ExecuTorch multiply them out and are no smaller"
        subject.notes.append(f"factorize: {two} matrices are two by now: {what}")


def _factored(step: Factorize, module: Any, gram: Floats) -> Factored | None:  # noqa: ANN401 - a linear module
    """The module as two; None where they would have no fewer weights."""
    weight = module.weight.detach().numpy()
    rows, columns = weight.shape
    most = (rows * columns - 1) // (rows + columns)
    if step.keep is not None and not _rounded(step.keep * rows * columns / (rows + columns), most):
        return None
    spectrum = svd(weight) if step.method == "svd" else svd_llm(weight, gram)
    wanted = spectrum.rank_for(step.energy) if step.energy is not None else 0.0
    if step.keep is not None:
        wanted = step.keep * rows * columns / (rows + columns)
    rank = _rounded(wanted, most)
    return Factored(*spectrum.factors(rank), module.bias) if rank else None


def _rounded(rank: float, most: int) -> int:
    """The nearest multiple, at least one; 0 where that is more than is worth it."""
    found = max(1, round(rank / MULTIPLE)) * MULTIPLE
    return found if found <= most else 0
