"""The options of the verbs in groups, each a frozen dataclass that turns itself into what the library takes.

A verb names the groups that it has; `exporter.cli.command` gives them to Typer as one signature. Nothing heavy is
imported here: `packlight --help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  Typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from exporter.cli.panels import BUDGET, COUNT, DRIFT, JOB, MS, NAME, NUMBER, OUTPUT, RUN, SECONDS, SIZE, SPEED, option

if TYPE_CHECKING:
    from exporter.findings import Limits
    from exporter.findings import Running as HowToRun
    from exporter.verify import VerifyOptions
    from runtime.budget import Budget
    from targets.drift import Thresholds
    from targets.encoder_drift import EncoderThresholds


# Of several groups.
DeviceName = Annotated[
    str | None, option("--device", "A device of 'packlight devices', or a .toml file.", BUDGET, NAME)
]
MaxMemory = Annotated[str | None, option("--max-memory", "Peak resident memory: 300MB.", BUDGET, SIZE)]
MaxSize = Annotated[str | None, option("--max-size", "Size of the file: 120MB.", BUDGET, SIZE)]
MinPrefill = Annotated[float | None, option("--min-prefill", "Reading the prompt.", BUDGET, SPEED, min=0)]
MinSpeed = Annotated[float | None, option("--min-speed", "Generating.", BUDGET, SPEED, min=0)]
ComputeThreads = Annotated[
    int | None, option("--threads", "Compute threads; default the cores, at most 4.", RUN, COUNT, min=1)
]
Batch = Annotated[int, option("--batch", "Prompt tokens at once; default 512.", RUN, COUNT, min=1)]
NoMmap = Annotated[bool, option("--no-mmap", "Read the weights, do not map them.", RUN)]


@dataclass(frozen=True)
class Output:
    """What every verb has."""

    json: Annotated[bool, option("--json", "One JSON document on standard output.", OUTPUT)] = False
    quiet: Annotated[bool, option("--quiet -q", "No progress and no table; errors only.", OUTPUT)] = False


@dataclass(frozen=True)
class Job:
    """What to export, and to where."""

    model: Annotated[
        str, typer.Argument(help="A model directory, a hub id or a .gguf file.", metavar="MODEL", show_default=False)
    ]
    out: Annotated[Path, option("--out -o", "Directory to write; it appears when all is done.", JOB, "OUT")]
    format: Annotated[
        str | None, option("--format", "Artifact format; default the recipe's, else gguf.", JOB, NAME)
    ] = None
    recipe: Annotated[
        str | None,
        option("--recipe", "Compress first: one of 'packlight recipes', or a .yaml file.", JOB, "RECIPE"),
    ] = None
    quant: Annotated[
        str | None,
        option(
            "--quant",
            "Quantization preset; default q4_k_m, onnx int4, torchscript int8; encoders q8_0, onnx and torchscript "
            "dynamic-int8; executorch int8.",
            JOB,
            NAME,
        ),
    ] = None
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", JOB, NAME)] = None
    calibration: Annotated[
        str, option("--calibration", "Ranges of static-int8: minmax (default), percentile, entropy.", JOB, NAME)
    ] = "minmax"
    calibration_text: Annotated[
        Path | None, option("--calibration-text", "Text for it (UTF-8); default Python's own help.", JOB, "FILE")
    ] = None
    split_max_size: Annotated[
        str | None,
        option("--split-max-size", "GGUF: several files, named as llama.cpp does; tensors in each: 2GB.", JOB, SIZE),
    ] = None
    resume: Annotated[bool, option("--resume", "GGUF: go on where a killed run with the same OUT was.", JOB)] = False
    overwrite: Annotated[bool, option("--overwrite", "Replace an earlier export in OUT.", JOB)] = False
    no_verify: Annotated[bool, option("--no-verify", "Leave out the comparison with MODEL.", JOB)] = False
    no_measure: Annotated[bool, option("--no-measure", "Leave out memory and speed.", JOB)] = False


@dataclass(frozen=True)
class CompressJob:
    """What to compress, how, and to where."""

    model: Annotated[str, typer.Argument(help="A model directory or a hub id.", metavar="MODEL", show_default=False)]
    recipe: Annotated[str, option("--recipe", "One of 'packlight recipes', or a .yaml file.", JOB, "RECIPE")]
    out: Annotated[Path, option("--out -o", "Directory to write; it appears when all is done.", JOB, "OUT")]
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", JOB, NAME)] = None
    threads: Annotated[
        int | None, option("--threads", "Compute threads; default torch's own choice.", RUN, COUNT, min=1)
    ] = None
    resume: Annotated[bool, option("--resume", "Go on where an interrupted run with the same OUT was.", RUN)] = False
    trust_remote_code: Annotated[
        bool, option("--trust-remote-code", "Run Python code that MODEL carries; read it first.", RUN)
    ] = False


@dataclass(frozen=True)
class ArtifactPath:
    """An artifact on disk."""

    artifact: Annotated[
        Path, typer.Argument(help="An exported directory, or a .gguf file.", metavar="ARTIFACT", show_default=False)
    ]


@dataclass(frozen=True)
class Checked:
    """What to check: an artifact by the options, or what a budget file names."""

    artifact: Annotated[
        Path | None,
        typer.Argument(help="An exported directory, or a .gguf file.", metavar="ARTIFACT", show_default=False),
    ] = None
    budget: Annotated[
        Path | None,
        option("--budget", "A file of checks; default packlight.toml, without ARTIFACT.", BUDGET, "FILE"),
    ] = None
    junit: Annotated[Path | None, option("--junit", "Write what was found as JUnit XML.", OUTPUT, "FILE")] = None


@dataclass(frozen=True)
class Reported:
    """What a page is about."""

    artifacts: Annotated[
        list[Path],
        typer.Argument(
            help="Exported directories, or files that --json was kept in; several are compared.",
            metavar="ARTIFACT...",
            show_default=False,
        ),
    ]


@dataclass(frozen=True)
class PageOut:
    """Where the page goes."""

    out: Annotated[Path, option("--out -o", "The file to write, such as page.html.", JOB, "FILE")]


@dataclass(frozen=True)
class ArchiveOut:
    """Where an archive goes."""

    out: Annotated[Path, option("--out -o", "The file to write, such as model.pla.", JOB, "FILE")]


@dataclass(frozen=True)
class HarnessOut:
    """Where the harness goes."""

    out: Annotated[Path, option("--out -o", "The file to write, such as packlight-runtime.pyz.", JOB, "FILE")]


@dataclass(frozen=True)
class FormatsShown:
    """What is listed."""

    architectures: Annotated[bool, option("--architectures", "The model classes that become GGUF.", OUTPUT)] = False


@dataclass(frozen=True)
class Archive:
    """An archive, and where its files go."""

    archive: Annotated[
        Path, typer.Argument(help="What 'packlight pack' has written.", metavar="FILE", show_default=False)
    ]
    out: Annotated[Path, option("--out -o", "Directory to write; it appears when all is done.", JOB, "OUT")]


@dataclass(frozen=True)
class Against:
    """The source of an artifact."""

    against: Annotated[
        str, option("--against", "The model it was made from: directory, hub id or .gguf.", DRIFT, "MODEL")
    ]
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", DRIFT, NAME)] = None


@dataclass(frozen=True)
class BudgetOptions:
    """Limits of size, memory and speed, and the device to fit."""

    device: DeviceName = None
    max_memory: MaxMemory = None
    max_size: MaxSize = None
    max_load: Annotated[float | None, option("--max-load", "Time to load.", BUDGET, SECONDS, min=0)] = None
    max_first_token: Annotated[
        float | None, option("--max-first-token", "Time to the first token.", BUDGET, MS, min=0)
    ] = None
    min_prefill: MinPrefill = None
    min_speed: MinSpeed = None
    max_latency: Annotated[
        float | None, option("--max-latency", "An encoder's time for a text.", BUDGET, MS, min=0)
    ] = None
    min_sustained_speed: Annotated[
        float | None, option("--min-sustained-speed", "At the end of --sustained.", BUDGET, SPEED, min=0)
    ] = None

    def limits(self, drift: Thresholds | None = None, encoder_drift: EncoderThresholds | None = None) -> Limits:
        """For the library. Raises UserError for a bad size or an unknown device."""
        from exporter.findings import Limits
        from targets.device import load_device

        return Limits(self._budget(), load_device(self.device) if self.device else None, drift, encoder_drift)

    def _budget(self) -> Budget:
        from runtime.budget import Budget
        from runtime.units import parse_bytes

        return Budget(
            max_memory_bytes=parse_bytes(self.max_memory) if self.max_memory is not None else None,
            max_artifact_bytes=parse_bytes(self.max_size) if self.max_size is not None else None,
            max_load_s=self.max_load,
            max_first_token_ms=self.max_first_token,
            min_prefill_tokens_per_s=self.min_prefill,
            min_decode_tokens_per_s=self.min_speed,
            max_latency_ms=self.max_latency,
            min_sustained_tokens_per_s=self.min_sustained_speed,
        )


KvType = Annotated[
    str | None,
    option("--kv-type", "Type of the KV cache: f16, q8_0, …; default the recipe's, else f16.", RUN, NAME),
]


def _lower(name: str | None) -> str | None:
    return name.lower() if name is not None else None


@dataclass(frozen=True)
class Running:
    """How an engine runs the artifact, and how much is measured."""

    context: Annotated[int, option("--context", "Tokens of context; default 2048.", RUN, COUNT, min=16)] = 2048
    threads: ComputeThreads = None
    batch: Batch = 512
    no_mmap: NoMmap = False
    kv_type: KvType = None
    trials: Annotated[int, option("--trials", "Trials after a warm-up; default 5.", RUN, COUNT, min=1)] = 5
    prompt_tokens: Annotated[
        int | None,
        option("--prompt-tokens", "Prompt of a trial; default 512, an encoder's text 128.", RUN, COUNT, min=1),
    ] = None
    decode_tokens: Annotated[int, option("--decode-tokens", "Generated in a trial; default 64.", RUN, COUNT, min=1)] = (
        64
    )
    turns: Annotated[
        int, option("--turns", "Turns of the conversation, memory after each; default 2.", RUN, COUNT, min=2)
    ] = 2
    fill_context: Annotated[
        bool, option("--fill-context", "Fill the context to its last token: its peak and speed.", RUN)
    ] = False
    sustained: Annotated[
        str | None, option("--sustained", "Then a load that goes on for so long: 5min.", RUN, "DURATION")
    ] = None
    timeout: Annotated[
        float,
        option("--timeout", "Give up measuring; default 600, --sustained on top.", RUN, SECONDS, min=1),
    ] = 600.0
    on: Annotated[
        str, option("--on", "Where it is measured: local (default), ssh:[user@]host[:port], adb:SERIAL.", RUN, "HOST")
    ] = "local"
    remote_python: Annotated[
        str | None, option("--remote-python", "There: the Python that has the engine.", RUN, "PATH")
    ] = None
    remote_dir: Annotated[
        str | None, option("--remote-dir", "There: keeps what was sent; default in ~/.cache/packlight.", RUN, "DIR")
    ] = None
    remote_clean: Annotated[bool, option("--remote-clean", "There: remove what was sent afterwards.", RUN)] = False

    engine: Annotated[
        Path | None, option("--engine", "For adb: the engine's tools, built for the phone.", RUN, "DIR")
    ] = None

    def how(self) -> HowToRun:
        """For the library."""
        from exporter.findings import Running as HowToRun
        from runtime.hosts import host_of
        from runtime.measurement import RunOptions, Trials
        from runtime.units import parse_seconds

        run = RunOptions(self.threads, self.context, self.batch, not self.no_mmap, _lower(self.kv_type))
        trials = Trials(
            self.prompt_tokens, self.decode_tokens, self.trials, self.timeout, self.turns, self.fill_context,
            0.0 if self.sustained is None else parse_seconds(self.sustained),
        )  # fmt: skip
        host = host_of(
            self.on,
            python=self.remote_python,
            directory=self.remote_dir,
            keep=not self.remote_clean,
            engine=self.engine,
        )
        return HowToRun(run, trials, host)


@dataclass(frozen=True)
class Verifying:
    """How the artifact is compared with its source, and the limits of the drift."""

    text: Annotated[
        Path | None, option("--text", "Text to compare on (UTF-8); default Python's own help.", DRIFT, "FILE")
    ] = None
    chunks: Annotated[
        int,
        option("--chunks", "Windows of 512 tokens, for an encoder 8 texts each; default 8.", DRIFT, COUNT, min=1),
    ] = 8
    source_dtype: Annotated[
        str, option("--source-dtype", "How MODEL is run: float32 (default), bfloat16, float16.", DRIFT, NAME)
    ] = "float32"
    max_kl: Annotated[float | None, option("--max-kl", "Mean KL divergence, in nats.", DRIFT, NUMBER, min=0)] = None
    max_kl_p99: Annotated[
        float | None, option("--max-kl-p99", "KL divergence, 99th percentile.", DRIFT, NUMBER, min=0)
    ] = None
    max_perplexity_ratio: Annotated[
        float | None, option("--max-perplexity-ratio", "Against the source's.", DRIFT, NUMBER, min=0)
    ] = None
    min_same_top1: Annotated[
        float | None, option("--min-same-top1", "Share of equal best tokens, 0 to 1.", DRIFT, NUMBER, min=0, max=1)
    ] = None
    min_cosine: Annotated[
        float | None, option("--min-cosine", "Embeddings: mean cosine to MODEL's.", DRIFT, NUMBER, min=-1, max=1)
    ] = None
    min_rank_correlation: Annotated[
        float | None, option("--min-rank-correlation", "Embeddings: Spearman's.", DRIFT, NUMBER, min=-1, max=1)
    ] = None
    min_label_agreement: Annotated[
        float | None,
        option("--min-label-agreement", "Classifiers: share of equal labels, 0 to 1.", DRIFT, NUMBER, min=0, max=1),
    ] = None
    trust_remote_code: Annotated[bool, option("--trust-remote-code", "Run Python code that MODEL carries.", DRIFT)] = (
        False
    )

    def thresholds(self) -> Thresholds | None:
        """The limits that were named; None where there are none, so that the defaults hold."""
        from targets.drift import Thresholds

        named = Thresholds(self.max_kl, self.max_kl_p99, self.max_perplexity_ratio, self.min_same_top1)
        return None if named == Thresholds() else named

    def encoder_thresholds(self) -> EncoderThresholds | None:
        """The same for encoders."""
        from targets.encoder_drift import EncoderThresholds

        named = EncoderThresholds(self.min_cosine, self.min_label_agreement, self.min_rank_correlation)
        return None if named == EncoderThresholds() else named

    def options(self, threads: int | None, kv_type: str | None = None) -> VerifyOptions:
        """For the library. kv_type: None for the one that the artifact was made for."""
        from exporter.verify import VerifyOptions

        return VerifyOptions(
            text=self.text,
            chunks=self.chunks,
            threads=threads,
            trust_remote_code=self.trust_remote_code,
            dtype=self.source_dtype,
            kv_type=_lower(kv_type),
        )


@dataclass(frozen=True)
class Threads:
    """For a verb that runs engines but measures no speed."""

    threads: Annotated[
        int | None, option("--threads", "Compute threads; default the engines' own.", DRIFT, COUNT, min=1)
    ] = None


@dataclass(frozen=True)
class Cache:
    """For a verb that runs decoders but measures no speed."""

    kv_type: KvType = None
