"""`packlight imatrix`: an importance matrix of a model from text, in a file that llama-quantize takes too."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.source import MOST_PROBLEMS, resolve_model, task_of_source
from runtime.errors import UnsupportedError, UserError
from runtime.openmp import wait_briefly
from runtime.sessions.base import TEXT_GENERATION
from targets.facts import several
from targets.gguf.choice import quantizable
from targets.gguf.imatrix import FORMS, ImportanceMatrix, write_imatrix
from targets.text import default_text, load_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exporter.progress import Reporter
    from exporter.verify.reference import TransformersReference
    from targets.facts import ModelFacts
    from targets.gguf.imatrix import Sums

_EXPERTS = re.compile(r"(?:^|\.)layers\.(\d+)\..*experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$")
_OF_EXPERTS = {
    "gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "gate_proj": ("ffn_gate_exps",), "up_proj": ("ffn_up_exps",),
    "down_proj": ("ffn_down_exps",),
}  # fmt: skip
"""What transformers calls the weights of all experts of a layer, and what a GGUF file holds of each."""


@dataclass(frozen=True)
class ImatrixRequest:
    """One importance matrix, as the user asked for it.

    text: a UTF-8 file; None for the calibration half of Python's own help
    chunks: pieces of `tokens` tokens from the text's beginning, None for all; form: of the file, None by its name
    low_memory: one layer in memory at a time
    """

    model: str
    out: Path
    text: Path | None = None
    chunks: int | None = None
    tokens: int = 512
    form: str | None = None
    low_memory: bool = False
    threads: int | None = None
    overwrite: bool = False
    trust_remote_code: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class ImatrixReport:
    """What was written. entries: matrices; unseen: matrices of layers that the file has nothing of, or only in part."""

    model: str
    out: str
    text: str
    chunks: int
    tokens: int
    entries: int
    seconds: float
    unseen: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return dataclasses.asdict(self)


def compute(request: ImatrixRequest, reporter: Reporter) -> ImatrixReport:
    """Run the model over the text and write the file. Raises UserError and its kin; the file is then as it was."""
    form = _form_of(request)
    text = default_text("calibration") if request.text is None else load_text(request.text)
    reporter.step(f"reading {request.model}")
    facts = _source(request)
    matrices, names = _matrices(facts)
    start = time.monotonic()
    wait_briefly()  # before torch is loaded: beside anything else its threads would spin most of the time away
    with _opened(request, facts) as source:
        chunks = pieces(source, text.text, request)
        reporter.step(f"importance of {len(matrices)} matrices on {len(chunks)} pieces of {request.tokens} tokens")
        sums = _collected(source, chunks, names, request, reporter)
    if not sums:
        raise UnsupportedError(f"{request.model}: none of its matrices was seen at work; report the model")
    matrix = ImportanceMatrix(dict(sorted(sums.items())), (text.name,), len(chunks), request.tokens)
    write_imatrix(request.out.absolute(), matrix, form)
    unseen = tuple(name for name in matrices if name not in sums or not sums[name].counts.all())
    seconds = time.monotonic() - start
    return ImatrixReport(
        request.model, str(request.out), text.name, len(chunks), request.tokens, len(sums), seconds, unseen
    )


def _form_of(request: ImatrixRequest) -> str:
    """One of FORMS. Raises UserError for another, and for a file that cannot be written or is there already."""
    out = request.out.absolute()
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{request.out}: is no file in a directory that is there; name one, such as imatrix.gguf")
    if out.exists() and not request.overwrite:
        raise UserError(f"{request.out}: is there already; name another file, or add --overwrite")
    form = request.form or ("dat" if out.suffix == ".dat" else "gguf")
    if form not in FORMS:
        raise UserError(f"--format {form}: is no form of an importance matrix; known: {', '.join(FORMS)}")
    return form


def _source(request: ImatrixRequest) -> ModelFacts:
    """The model. Raises UserError for one that torch does not run, or that is no decoder."""
    facts = resolve_model(request.model, trust_remote_code=request.trust_remote_code, revision=request.revision)
    if facts.source != "huggingface":
        raise UserError(f"{request.model}: is a .gguf file; name the Hugging Face directory, or use llama-imatrix")
    if (task := task_of_source(facts)) != TEXT_GENERATION:
        raise UserError(f"{request.model}: is for {task}; an importance matrix is for decoders, which continue a text")
    return facts


def _matrices(facts: ModelFacts) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the layers' matrices in a GGUF file, and by the name of a stored weight those that it becomes.

    Raises UnsupportedError for a model that is not written as GGUF.
    """
    from targets.gguf.plan import read_content

    content, problems = read_content(facts)
    if content is None or problems:
        raise UnsupportedError("\n".join(map(str, problems[:MOST_PROBLEMS])))
    names: dict[str, list[str]] = defaultdict(list)
    for tensor in content.tensors:
        # Rows of a fused matrix have the input of the whole one, and so have those that are stored as columns.
        stored = {fact.name for fact in tensor.sources}
        matrix = len(tensor.shape) > 1 and tensor.name.startswith("blk.") and tensor.name.endswith(".weight")
        if len(stored) == 1 and matrix:
            names[stored.pop()].append(tensor.name)
    found = [
        tensor.name
        for tensor in content.tensors
        if tensor.name.startswith("blk.") and quantizable(tensor.name, tensor.shape)
    ]
    return found, dict(names)


@contextlib.contextmanager
def _opened(request: ImatrixRequest, facts: ModelFacts) -> Iterator[TransformersReference]:
    """The model in float32: in memory, or in a file that is mapped, beside the file to write."""
    with contextlib.ExitStack() as stack:
        how: dict[str, Any] = {"threads": request.threads, "trust_remote_code": request.trust_remote_code}
        source: TransformersReference
        if request.low_memory:
            from exporter.imatrix.collect import LowMemory

            beside = request.out.absolute().parent
            room = stack.enter_context(tempfile.TemporaryDirectory(prefix=".packlight-imatrix-", dir=beside))
            source = LowMemory(facts, Path(room), **how)
        else:
            from exporter.verify.reference import TransformersReference as InMemory

            source = InMemory(facts.path, dtype="float32", **how)
        yield stack.enter_context(contextlib.closing(source))


def pieces(source: TransformersReference, text: str, request: ImatrixRequest) -> list[list[int]]:
    """Token ids as llama-imatrix cuts them: one after the other, each beginning as a text of its own does.

    Raises UserError for a text of less than one piece.
    """
    ids = source.tokenize(text, add_special=True)
    count = len(ids) // request.tokens
    if not count:
        what = f"has {len(ids)} tokens, a piece is {request.tokens}"
        raise UserError(f"--text: {what}; name a longer text, or ask for fewer --tokens")
    if request.chunks is not None:
        count = min(count, request.chunks)
    found = [ids[number * request.tokens : (number + 1) * request.tokens] for number in range(count)]
    if source.bos_id is None:
        return found
    return [[source.bos_id, *piece[1:]] for piece in found]


def _collected(
    source: TransformersReference,
    chunks: list[list[int]],
    names: Mapping[str, list[str]],
    request: ImatrixRequest,
    reporter: Reporter,
) -> dict[str, Sums]:
    """Sums by names of a GGUF file's tensors."""
    from exporter.imatrix.collect import Collector, by_layers, whole

    targets = {
        name: found
        for name, parameter in source.model.named_parameters()
        if parameter.dim() in (2, 3) and (found := gguf_names(name, source.model.base_model_prefix, names))
    }
    collector = Collector({name: source.model.get_parameter(name) for name in targets})
    run = by_layers if request.low_memory else whole
    run(source.model, chunks, collector, lambda done, total: reporter.advance("importance", done, total))
    return {gguf: sums for name, sums in collector.sums().items() for gguf in targets[name]}


def gguf_names(name: str, prefix: str, names: Mapping[str, list[str]]) -> list[str]:
    """What a GGUF file calls a weight of transformers' model; empty for one that it has not, or not in a layer.

    prefix: of the weights below the head, which some checkpoints leave out; names: by those of stored weights
    """
    for stored in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if stored in names:
            return list(names[stored])
    experts = _EXPERTS.search(name)
    if experts is None:
        return []
    return [f"blk.{experts[1]}.{own}.weight" for own in _OF_EXPERTS[experts[2]]]


def said(report: ImatrixReport) -> list[str]:
    """The report in lines for people."""
    lines = [
        f"importance of {report.entries} matrices, {report.chunks} pieces of {report.tokens} tokens, "
        f"{report.seconds:.0f} s",
        f"text: {report.text}",
    ]
    if report.unseen:
        what = "nothing, or nothing of some experts, was seen of"
        lines.append(f"note: {what} {several(list(report.unseen))}; more text may help")
    lines.append(f"written: {report.out}")
    lines.append(f"next: packlight export {report.model} --quant iq3_xxs --imatrix {report.out} -o ARTIFACT")
    return lines
