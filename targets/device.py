"""Device profiles: what a phone or a board has, each figure with where it comes from. One TOML file a device."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.units import parse_bytes
from targets.processor import FEATURES, Processor
from targets.toml_file import load_toml

DEVICES = Path(__file__).parent / "devices"
KINDS = ("vendor", "measured", "computed", "estimate")
ARCHS = tuple(FEATURES)
OSES = ("android", "ios", "linux", "macos", "windows")
_FIGURES = ("memory", "usable", "bandwidth", "cores")
_TEXTS = ("id", "name", "os", "chip")


@dataclass(frozen=True)
class Source:
    """Where a figure comes from.

    kind: "vendor" (the maker states it), "measured" (somebody measured it), "computed" (from an interface's
        width and rate), "estimate" (a rule or a guess)
    text: a URL, a sum, or the rule
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Device:
    """A device that runs artifacts.

    memory_bytes: installed; usable_bytes: what one app can hold resident before the system kills it
    bandwidth_bytes_per_s: of the main memory; cores: all of them, big and small
    formats: artifact formats that an engine runs there
    sources: where each figure comes from, by "memory", "usable", "bandwidth", "cores" and perhaps "onnxruntime"
    onnxruntime: version of ONNX Runtime that apps there ship, such as "1.22"; None: the newest that packlight knows
    arch: of the processor, one of ARCHS; None where the profile does not say
    features: instructions that it has, of FEATURES[arch]; None where the profile does not say
    """

    id: str
    name: str
    os: str
    chip: str
    memory_bytes: int
    usable_bytes: int
    bandwidth_bytes_per_s: int
    cores: int
    formats: tuple[str, ...]
    sources: dict[str, Source]
    onnxruntime: str | None = None
    arch: str | None = None
    features: tuple[str, ...] | None = None

    @property
    def processor(self) -> Processor:
        """Phones are all of one architecture; a device that does not say is taken for one like this machine."""
        arch = self.arch or ("aarch64" if self.os in ("android", "ios") else None)
        if arch is None:
            return Processor.here()
        return Processor.usual(arch) if self.features is None else Processor(arch, frozenset(self.features))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`: every figure as value, kind and source."""
        values = (self.memory_bytes, self.usable_bytes, self.bandwidth_bytes_per_s, self.cores)
        units = ("memory_bytes", "usable_bytes", "bandwidth_bytes_per_s", "cores")
        figures = {
            unit: {"value": value, "kind": self.sources[name].kind, "source": self.sources[name].text}
            for unit, name, value in zip(units, _FIGURES, values, strict=True)
        }
        texts = {name: getattr(self, name) for name in (*_TEXTS, *(["arch"] if self.arch else []))}
        if self.onnxruntime is not None:
            source = self.sources["onnxruntime"]
            figures["onnxruntime"] = {"version": self.onnxruntime, "kind": source.kind, "source": source.text}
        listed = {} if self.features is None else {"features": list(self.features)}
        return {**texts, **listed, "formats": list(self.formats), **figures}


def list_devices() -> list[Device]:
    """Every profile that packlight carries, by id."""
    return [_read(path) for path in sorted(DEVICES.glob("*.toml"))]


def load_device(name_or_path: str) -> Device:
    """The profile of that id, or the one in that TOML file.

    Raises UserError for an unknown id (with the nearest ones) and for a file that is not a profile.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read(Path(name_or_path))
    known = sorted(path.stem for path in DEVICES.glob("*.toml"))
    if name_or_path.lower() in known:
        return _read(DEVICES / f"{name_or_path.lower()}.toml")
    near = difflib.get_close_matches(name_or_path.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)};"
    raise UserError(f"unknown device '{name_or_path}': {hint} or name your own .toml file")


def _read(path: Path) -> Device:
    """The Device that one file describes."""
    return _build(path, load_toml(path, "'packlight devices' lists the profiles"))


def _build(path: Path, data: dict[str, Any]) -> Device:
    """The Device in a parsed file. Raises UserError that names the file, the key and what it should be."""
    known = (*_TEXTS, "arch", "features", "formats", *_FIGURES, "onnxruntime")
    if unknown := sorted(set(data) - set(known)):
        raise UserError(f"{path}: unknown key '{unknown[0]}'; a profile has {', '.join(known)}")
    texts = {name: _text(path, data, name) for name in _TEXTS}
    if texts["os"] not in OSES:
        raise UserError(f"{path}: os '{texts['os']}' is unknown; write one of {', '.join(OSES)}")
    arch = _text(path, data, "arch") if "arch" in data else None
    if arch not in (None, *ARCHS):
        raise UserError(f"{path}: arch '{arch}' is unknown; write one of {', '.join(ARCHS)}")
    features = _features(path, data, arch)
    formats = data.get("formats")
    if not isinstance(formats, list) or not formats or not all(isinstance(item, str) for item in formats):
        raise UserError(f'{path}: formats has to be a list of names, for example formats = ["gguf"]')
    figures = {name: _figure(path, data, name) for name in _FIGURES}
    if figures["usable"][0] > figures["memory"][0]:
        raise UserError(f"{path}: usable.value is more than memory.value; one app cannot use more than there is")
    sources = {name: source for name, (_, source) in figures.items()}
    engine = _onnxruntime(path, data)
    if engine:
        sources["onnxruntime"] = engine[1]
    return Device(
        **texts,
        memory_bytes=figures["memory"][0],
        usable_bytes=figures["usable"][0],
        bandwidth_bytes_per_s=figures["bandwidth"][0],
        cores=figures["cores"][0],
        formats=tuple(formats),
        sources=sources,
        onnxruntime=engine[0] if engine else None,
        arch=arch,
        features=features,
    )


def _features(path: Path, data: dict[str, Any], arch: str | None) -> tuple[str, ...] | None:
    """The instructions that a profile names; an empty list says that the processor has none of them."""
    if "features" not in data:
        return None
    if arch is None:
        raise UserError(f'{path}: features without arch; write arch = "…" as well, one of {", ".join(ARCHS)}')
    named, known = data["features"], FEATURES[arch]
    if not isinstance(named, list) or not all(isinstance(name, str) and name in known for name in named):
        raise UserError(f"{path}: features has to be a list of some of {', '.join(known)}, the instructions of {arch}")
    return tuple(named)


def _text(path: Path, data: dict[str, Any], key: str) -> str:
    """The non-empty string under `key`."""
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f'{path}: {key} is missing or not a text; write {key} = "…"')
    return value


def _figure(path: Path, data: dict[str, Any], name: str) -> tuple[int, Source]:
    """The value and the source of the table `[name]`; sizes are texts such as "8GiB", counts are integers."""
    table = data.get(name)
    if not isinstance(table, dict):
        raise UserError(f"{path}: [{name}] is missing; it needs value, kind and source")
    if set(table) != {"value", "kind", "source"}:
        raise UserError(f"{path}: [{name}] has {', '.join(table) or 'nothing'}; it needs value, kind and source")
    source = _source(path, table, name)
    value = table["value"]
    if name == "cores":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{path}: cores.value has to be a whole number of at least 1")
        return value, source
    if not isinstance(value, str):
        raise UserError(f'{path}: {name}.value has to be a size in quotes, for example "8GiB"')
    try:
        return parse_bytes(value), source
    except UserError as error:
        raise UserError(f"{path}: {name}.value: {error}") from error


def _source(path: Path, table: dict[str, Any], name: str) -> Source:
    """Where the figure of the table `[name]` comes from."""
    source = Source(kind=_text(path, table, "kind"), text=_text(path, table, "source"))
    if source.kind not in KINDS:
        raise UserError(f"{path}: {name}.kind '{source.kind}' is unknown; write one of {', '.join(KINDS)}")
    return source


def _onnxruntime(path: Path, data: dict[str, Any]) -> tuple[str, Source] | None:
    """Version and source in the table `[onnxruntime]`; None where the profile has none."""
    if "onnxruntime" not in data:
        return None
    table = data["onnxruntime"]
    if not isinstance(table, dict) or set(table) != {"version", "kind", "source"}:
        raise UserError(f"{path}: [onnxruntime] needs version, kind and source")
    version = table["version"]
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
        raise UserError(f'{path}: onnxruntime.version has to be a version in quotes, for example "1.23"')
    return version, _source(path, table, "onnxruntime")
