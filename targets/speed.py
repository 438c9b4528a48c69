"""How fast an artifact will be: by what was measured on a host once, or not faster than a memory's bandwidth allows."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from targets.outline import Outline, Work

VERSION = 2
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
            "q4_0": 18 / 32}  # fmt: skip
"""Of one element."""


@dataclass(frozen=True)
class EngineSpeed:
    """Of one engine on one host.

    decode_s, prefill_s: seconds for one element of a matrix and one token, by the label of how it is stored
    layer_s: of one token in one layer whatever its matrices are, decoded
    attention_s, prompt_attention_s: of one product with one element of the cache, by the cache's type
    """

    decode_s: Mapping[str, float]
    prefill_s: Mapping[str, float]
    layer_s: float
    attention_s: Mapping[str, float]
    prompt_attention_s: Mapping[str, float]

    @property
    def costs(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Of decoding and of prompts."""
        return self.decode_s, self.prefill_s


@dataclass(frozen=True)
class HostSpeed:
    """What `packlight calibrate-host` measured. cpu: as `runtime.host.host_facts` names it; threads: of the engines"""

    cpu: str
    threads: int
    bandwidth_bytes_per_s: float
    engines: Mapping[str, EngineSpeed]
    created: str = ""
    version: int = VERSION
    engine_versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HostSpeed:
        """The inverse of `to_json`."""
        engines = {name: EngineSpeed(**values) for name, values in data["engines"].items()}
        return cls(**{**data, "engines": engines})

    def beside(self, earlier: HostSpeed) -> HostSpeed:
        """The same with engines of an earlier calibration that this one left out."""
        return dataclasses.replace(
            self,
            engines={**earlier.engines, **self.engines},
            engine_versions={**earlier.engine_versions, **self.engine_versions},
        )

    def decode(self, outline: Outline, past: float, kv_type: str) -> float | None:
        """Tokens a second behind so many tokens; None for what was not measured, and for an encoder."""
        engine, work = self.engines.get(outline.format), outline.work()
        if engine is None or outline.encoder or not set(work.weights) <= set(engine.decode_s):
            return None
        if kv_type not in engine.attention_s:
            return None
        seconds = sum(count * engine.decode_s[label] for label, count in work.weights.items())
        seconds += work.n_layers * engine.layer_s + work.attention * past * engine.attention_s[kv_type]
        return 1 / seconds

    def prefill(self, outline: Outline, tokens: int, kv_type: str) -> float | None:
        """Tokens a second of a prompt of so many; None for what was not measured."""
        engine, work = self.engines.get(outline.format), outline.work()
        if engine is None or not set(work.weights) <= set(engine.prefill_s):
            return None
        if outline.encoder and outline.format == "gguf":
            return None  # what was measured of llama.cpp is a decoder's prompt
        attention_s = engine.prompt_attention_s.get(kv_type)
        if attention_s is None:
            return None
        # The head is for the last token alone.
        seconds = sum(
            (count - work.head.get(label, 0)) * engine.prefill_s[label] for label, count in work.weights.items()
        )
        return 1 / (seconds + work.attention * tokens / 2 * attention_s)


def load_speed(path: Path) -> HostSpeed | None:
    """What a calibration has left there; None where there is none, or an older version of it. Raises UserError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run 'packlight calibrate-host' again") from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        return None
    try:
        return HostSpeed.from_json(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no calibration ({error}); run 'packlight calibrate-host' again") from error


def decode_bound(work: Work, bandwidth_bytes_per_s: int, past: float, kv_type: str) -> float:
    """Tokens a second that a memory allows at most: every weight and the cache so far are read once for a token."""
    return bandwidth_bytes_per_s / (work.weight_bytes + work.kv_elements * past * KV_BYTES[kv_type])
