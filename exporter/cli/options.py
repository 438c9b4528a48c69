"""The options of the verbs in groups, each a frozen dataclass that turns itself into what the library takes.

A verb names the groups that it has; `exporter.cli.command` gives them to Typer as one signature. Nothing heavy is
imported here: `packlight --help` reads this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  Typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from exporter.findings import Limits
    from exporter.findings import Running as HowToRun
    from exporter.verify import VerifyOptions
    from runtime.budget import Budget
    from targets.drift import Thresholds
    from targets.encoder_drift import EncoderThresholds


def _option(names: str, help: str, panel: str, metavar: str | None = None, **more: Any) -> Any:  # noqa: ANN401  Typer's own
    """A Typer option; `names` separated by spaces."""
    return typer.Option(*names.split(), help=help, rich_help_panel=panel, metavar=metavar, show_default=False, **more)


_SIZE, _SECONDS, _MS, _SPEED, _NUMBER, _COUNT, _NAME = "SIZE", "SECONDS", "MS", "TOKENS/S", "X", "N", "NAME"
_JOB, _BUDGET, _RUN, _DRIFT, _OUTPUT = "The job", "The budget", "How it is run", "Verifying", "Output"


# Of several groups.
DeviceName = Annotated[
    str | None, _option("--device", "A device of 'packlight devices', or a .toml file.", _BUDGET, _NAME)
]
MaxMemory = Annotated[str | None, _option("--max-memory", "Peak resident memory: 300MB.", _BUDGET, _SIZE)]
MaxSize = Annotated[str | None, _option("--max-size", "Size of the file: 120MB.", _BUDGET, _SIZE)]
MinPrefill = Annotated[float | None, _option("--min-prefill", "Reading the prompt.", _BUDGET, _SPEED, min=0)]
MinSpeed = Annotated[float | None, _option("--min-speed", "Generating.", _BUDGET, _SPEED, min=0)]
ComputeThreads = Annotated[
    int | None, _option("--threads", "Compute threads; default the cores, at most 4.", _RUN, _COUNT, min=1)
]
Batch = Annotated[int, _option("--batch", "Prompt tokens at once; default 512.", _RUN, _COUNT, min=1)]
NoMmap = Annotated[bool, _option("--no-mmap", "Read the weights, do not map them.", _RUN)]


@dataclass(frozen=True)
class Output:
    """What every verb has."""

    json: Annotated[bool, _option("--json", "One JSON document on standard output.", _OUTPUT)] = False
    quiet: Annotated[bool, _option("--quiet -q", "No progress and no table; errors only.", _OUTPUT)] = False


@dataclass(frozen=True)
class Job:
    """What to export, and to where."""

    model: Annotated[
        str, typer.Argument(help="A model directory, a hub id or a .gguf file.", metavar="MODEL", show_default=False)
    ]
    out: Annotated[Path, _option("--out -o", "Directory to write; it appears when all is done.", _JOB, "OUT")]
    format: Annotated[
        str | None, _option("--format", "Artifact format; default the recipe's, else gguf.", _JOB, _NAME)
    ] = None
    recipe: Annotated[
        str | None,
        _option("--recipe", "Compress first: one of 'packlight recipes', or a .yaml file.", _JOB, "RECIPE"),
    ] = None
    quant: Annotated[
        str | None,
        _option(
            "--quant",
            "Quantization preset; default q4_k_m, onnx int4, torchscript int8; encoders dynamic-int8; executorch int8.",
            _JOB,
            _NAME,
        ),
    ] = None
    revision: Annotated[str | None, _option("--revision", "Branch, tag or commit of a hub id.", _JOB, _NAME)] = None
    calibration: Annotated[
        str, _option("--calibration", "Ranges of static-int8: minmax (default), percentile, entropy.", _JOB, _NAME)
    ] = "minmax"
    calibration_text: Annotated[
        Path | None, _option("--calibration-text", "Text for it (UTF-8); default Python's own help.", _JOB, "FILE")
    ] = None
    overwrite: Annotated[bool, _option("--overwrite", "Replace an earlier export in OUT.", _JOB)] = False
    no_verify: Annotated[bool, _option("--no-verify", "Leave out the comparison with MODEL.", _JOB)] = False
    no_measure: Annotated[bool, _option("--no-measure", "Leave out memory and speed.", _JOB)] = False


@dataclass(frozen=True)
class Planned:
    """What to plan. Options that may be repeated make a row each."""

    model: Annotated[
        str, typer.Argument(help="A model directory, a hub id or a .gguf file.", metavar="MODEL", show_default=False)
    ]
    format: Annotated[list[str] | None, _option("--format", "Only this format; may be repeated.", _JOB, _NAME)] = None
    quant: Annotated[list[str] | None, _option("--quant", "Only this preset; may be repeated.", _JOB, _NAME)] = None
    context: Annotated[
        list[int] | None, _option("--context", "Tokens of context; default 2048; repeatable.", _RUN, _COUNT, min=16)
    ] = None
    kv_type: Annotated[
        list[str] | None,
        _option("--kv-type", "Type of the KV cache; default the recipe's, else f16; repeatable.", _RUN, _NAME),
    ] = None
    batch: Batch = 512
    threads: ComputeThreads = None
    no_mmap: NoMmap = False
    revision: Annotated[str | None, _option("--revision", "Branch, tag or commit of a hub id.", _JOB, _NAME)] = None


@dataclass(frozen=True)
class PlanLimits:
    """Limits that are known beforehand, and the device to fit."""

    device: DeviceName = None
    max_memory: MaxMemory = None
    max_size: MaxSize = None
    min_prefill: MinPrefill = None
    min_speed: MinSpeed = None

    def budget_options(self) -> BudgetOptions:
        """The same among all limits."""
        return BudgetOptions(self.device, self.max_memory, self.max_size,
                             min_prefill=self.min_prefill, min_speed=self.min_speed)  # fmt: skip


@dataclass(frozen=True)
class Calibrating:
    """How this machine is calibrated."""

    threads: ComputeThreads = None
    format: Annotated[
        list[str] | None, _option("--format", "Only engines of this format; may be repeated.", _RUN, _NAME)
    ] = None


@dataclass(frozen=True)
class CompressJob:
    """What to compress, how, and to where."""

    model: Annotated[str, typer.Argument(help="A model directory or a hub id.", metavar="MODEL", show_default=False)]
    recipe: Annotated[str, _option("--recipe", "One of 'packlight recipes', or a .yaml file.", _JOB, "RECIPE")]
    out: Annotated[Path, _option("--out -o", "Directory to write; it appears when all is done.", _JOB, "OUT")]
    revision: Annotated[str | None, _option("--revision", "Branch, tag or commit of a hub id.", _JOB, _NAME)] = None
    threads: Annotated[
        int | None, _option("--threads", "Compute threads; default torch's own choice.", _RUN, _COUNT, min=1)
    ] = None
    resume: Annotated[bool, _option("--resume", "Go on where an interrupted run with the same OUT was.", _RUN)] = False
    trust_remote_code: Annotated[
        bool, _option("--trust-remote-code", "Run Python code that MODEL carries; read it first.", _RUN)
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
        _option("--budget", "A file of checks; default packlight.toml, without ARTIFACT.", _BUDGET, "FILE"),
    ] = None
    junit: Annotated[Path | None, _option("--junit", "Write what was found as JUnit XML.", _OUTPUT, "FILE")] = None


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

    out: Annotated[Path, _option("--out -o", "The file to write, such as page.html.", _JOB, "FILE")]


@dataclass(frozen=True)
class ArchiveOut:
    """Where an archive goes."""

    out: Annotated[Path, _option("--out -o", "The file to write, such as model.pla.", _JOB, "FILE")]


@dataclass(frozen=True)
class HarnessOut:
    """Where the harness goes."""

    out: Annotated[Path, _option("--out -o", "The file to write, such as packlight-runtime.pyz.", _JOB, "FILE")]


@dataclass(frozen=True)
class FormatsShown:
    """What is listed."""

    architectures: Annotated[bool, _option("--architectures", "The model classes that become GGUF.", _OUTPUT)] = False


@dataclass(frozen=True)
class Archive:
    """An archive, and where its files go."""

    archive: Annotated[
        Path, typer.Argument(help="What 'packlight pack' has written.", metavar="FILE", show_default=False)
    ]
    out: Annotated[Path, _option("--out -o", "Directory to write; it appears when all is done.", _JOB, "OUT")]


@dataclass(frozen=True)
class Against:
    """The source of an artifact."""

    against: Annotated[
        str, _option("--against", "The model it was made from: directory, hub id or .gguf.", _DRIFT, "MODEL")
    ]
    revision: Annotated[str | None, _option("--revision", "Branch, tag or commit of a hub id.", _DRIFT, _NAME)] = None


@dataclass(frozen=True)
class BudgetOptions:
    """Limits of size, memory and speed, and the device to fit."""

    device: DeviceName = None
    max_memory: MaxMemory = None
    max_size: MaxSize = None
    max_load: Annotated[float | None, _option("--max-load", "Time to load.", _BUDGET, _SECONDS, min=0)] = None
    max_first_token: Annotated[
        float | None, _option("--max-first-token", "Time to the first token.", _BUDGET, _MS, min=0)
    ] = None
    min_prefill: MinPrefill = None
    min_speed: MinSpeed = None
    max_latency: Annotated[
        float | None, _option("--max-latency", "An encoder's time for a text.", _BUDGET, _MS, min=0)
    ] = None
    min_sustained_speed: Annotated[
        float | None, _option("--min-sustained-speed", "At the end of --sustained.", _BUDGET, _SPEED, min=0)
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
    _option("--kv-type", "Type of the KV cache: f16, q8_0, …; default the recipe's, else f16.", _RUN, _NAME),
]


def _lower(name: str | None) -> str | None:
    return name.lower() if name is not None else None


@dataclass(frozen=True)
class Running:
    """How an engine runs the artifact, and how much is measured."""

    context: Annotated[int, _option("--context", "Tokens of context; default 2048.", _RUN, _COUNT, min=16)] = 2048
    threads: ComputeThreads = None
    batch: Batch = 512
    no_mmap: NoMmap = False
    kv_type: KvType = None
    trials: Annotated[int, _option("--trials", "Trials after a warm-up; default 5.", _RUN, _COUNT, min=1)] = 5
    prompt_tokens: Annotated[
        int | None,
        _option("--prompt-tokens", "Prompt of a trial; default 512, an encoder's text 128.", _RUN, _COUNT, min=1),
    ] = None
    decode_tokens: Annotated[
        int, _option("--decode-tokens", "Generated in a trial; default 64.", _RUN, _COUNT, min=1)
    ] = 64
    turns: Annotated[
        int, _option("--turns", "Turns of the conversation, memory after each; default 2.", _RUN, _COUNT, min=2)
    ] = 2
    fill_context: Annotated[
        bool, _option("--fill-context", "Fill the context to its last token: its peak and speed.", _RUN)
    ] = False
    sustained: Annotated[
        str | None, _option("--sustained", "Then a load that goes on for so long: 5min.", _RUN, "DURATION")
    ] = None
    timeout: Annotated[
        float,
        _option("--timeout", "Give up measuring; default 600, --sustained on top.", _RUN, _SECONDS, min=1),
    ] = 600.0
    on: Annotated[
        str, _option("--on", "Where it is measured: local (default), ssh:[user@]host[:port], adb:SERIAL.", _RUN, "HOST")
    ] = "local"
    remote_python: Annotated[
        str | None, _option("--remote-python", "There: the Python that has the engine.", _RUN, "PATH")
    ] = None
    remote_dir: Annotated[
        str | None, _option("--remote-dir", "There: keeps what was sent; default in ~/.cache/packlight.", _RUN, "DIR")
    ] = None
    remote_clean: Annotated[bool, _option("--remote-clean", "There: remove what was sent afterwards.", _RUN)] = False

    engine: Annotated[
        Path | None, _option("--engine", "For adb: the engine's tools, built for the phone.", _RUN, "DIR")
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
        Path | None, _option("--text", "Text to compare on (UTF-8); default Python's own help.", _DRIFT, "FILE")
    ] = None
    chunks: Annotated[
        int,
        _option("--chunks", "Windows of 512 tokens, for an encoder 8 texts each; default 8.", _DRIFT, _COUNT, min=1),
    ] = 8
    source_dtype: Annotated[
        str, _option("--source-dtype", "How MODEL is run: float32 (default), bfloat16, float16.", _DRIFT, _NAME)
    ] = "float32"
    max_kl: Annotated[float | None, _option("--max-kl", "Mean KL divergence, in nats.", _DRIFT, _NUMBER, min=0)] = None
    max_kl_p99: Annotated[
        float | None, _option("--max-kl-p99", "KL divergence, 99th percentile.", _DRIFT, _NUMBER, min=0)
    ] = None
    max_perplexity_ratio: Annotated[
        float | None, _option("--max-perplexity-ratio", "Against the source's.", _DRIFT, _NUMBER, min=0)
    ] = None
    min_same_top1: Annotated[
        float | None, _option("--min-same-top1", "Share of equal best tokens, 0 to 1.", _DRIFT, _NUMBER, min=0, max=1)
    ] = None
    min_cosine: Annotated[
        float | None, _option("--min-cosine", "Embeddings: mean cosine to MODEL's.", _DRIFT, _NUMBER, min=-1, max=1)
    ] = None
    min_rank_correlation: Annotated[
        float | None, _option("--min-rank-correlation", "Embeddings: Spearman's.", _DRIFT, _NUMBER, min=-1, max=1)
    ] = None
    min_label_agreement: Annotated[
        float | None,
        _option("--min-label-agreement", "Classifiers: share of equal labels, 0 to 1.", _DRIFT, _NUMBER, min=0, max=1),
    ] = None
    trust_remote_code: Annotated[
        bool, _option("--trust-remote-code", "Run Python code that MODEL carries.", _DRIFT)
    ] = False

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
        int | None, _option("--threads", "Compute threads; default the engines' own.", _DRIFT, _COUNT, min=1)
    ] = None


@dataclass(frozen=True)
class Cache:
    """For a verb that runs decoders but measures no speed."""

    kv_type: KvType = None
