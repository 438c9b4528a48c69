"""Temperature, frequency and energy of this machine, where the kernel shows them (Linux). Nothing is needed for it.

Every figure is None where there is no sensor, where it cannot be read (energy is for root only on most systems), or
where what it says cannot be true.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

SYS = Path("/sys")
COLDEST_C, HOTTEST_C = -55.0, 150.0
"""What a processor's sensor can say: a zone that is switched off says less, or absolute zero."""
_PROCESSOR = re.compile(r"x86_pkg_temp|coretemp|k10temp|cpu|soc|tsens|big|little|mcu|package|cluster", re.IGNORECASE)
# "soc" alone is the state of charge on some phones.
_NOT_PROCESSOR = re.compile(r"^soc$|gpu|batt|charg|usb|wlan|wifi|modem|skin|ddr|npu|camera", re.IGNORECASE)
DRAINING = "Discharging"
LEAST_WATTS = 0.05
"""Of a machine that computes."""


def read_text(path: Path) -> str | None:
    """The text of a file, stripped; None where it cannot be read: missing, forbidden, or a sensor that is asleep."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    text = read_text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def celsius(number: int) -> float | None:
    """Degrees of a zone's number. The kernel's unit is a thousandth; some drivers say whole degrees.

    As thousandths, these small numbers would be a fraction of a degree. Those between may be tenths: nobody knows.
    """
    if 200 <= number < 1000:
        return None
    degrees = float(number) if -273 <= number < 200 else number / 1000
    return degrees if COLDEST_C <= degrees <= HOTTEST_C else None


def temperature_c(sys: Path = SYS) -> float | None:
    """Of the processor: the hottest of what is named so; where nothing is, of the zones that name nothing else."""
    ours, others = [], []
    zones = [(zone / "type", zone / "temp") for zone in sys.glob("class/thermal/thermal_zone*")]
    chips = [
        (chip / "name", sensor) for chip in sys.glob("class/hwmon/hwmon*") for sensor in chip.glob("temp*_input")
    ]  # AMD's and some of Intel's sensors are here alone
    for name, sensor in (*zones, *chips):
        number, kind = read_number(sensor), read_text(name) or ""
        degrees = None if number is None else celsius(number)
        if degrees is None or _NOT_PROCESSOR.search(kind):
            continue
        if _PROCESSOR.search(kind):
            ours.append(degrees)
        elif name.name == "type":
            others.append(degrees)
    return max(ours or others, default=None)


def frequency_hz(sys: Path = SYS) -> int | None:
    """Of the core that runs fastest now."""
    found = (read_number(path) for path in sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return max((kilohertz * 1000 for kilohertz in found if kilohertz), default=None)


@dataclass
class Rapl:
    """Energy counters of the processor packages, in microjoules, which begin again at zero now and then.

    counters: the counter's file, and what it counts to; lost: a counter could not be followed
    """

    counters: dict[Path, int]
    used_uj: int = 0
    lost: bool = False
    _last: dict[Path, int] = field(default_factory=dict)

    source = "RAPL, processor packages"

    @classmethod
    def of(cls, sys: Path) -> Rapl | None:
        """The packages' counters; parts of a package are in it already. None where one cannot be read."""
        zones = sys.glob("class/powercap/intel-rapl:*")
        packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
        meter = cls({zone / "energy_uj": read_number(zone / "max_energy_range_uj") or 0 for zone in packages})
        meter._last = {path: now for path in meter.counters if (now := read_number(path)) is not None}
        return meter if packages and len(meter._last) == len(packages) else None

    def read(self) -> None:
        """Count what was used since the last time, which has to be less than a counter's whole range ago."""
        for path, most in self.counters.items():
            now = read_number(path)
            if now is None or (now < self._last[path] and not most):
                self.lost = True
                continue
            used = now - self._last[path]
            self.used_uj += used if used >= 0 else used + most
            self._last[path] = now

    def joules(self) -> float | None:
        """Since the begin; None where a counter could not be followed, or has not moved, as a virtual machine's."""
        return None if self.lost or self.used_uj <= 0 else self.used_uj / 1e6


@dataclass
class Battery:
    """What left a battery that nothing charges: its power over time, or where it tells none, its energy or charge.

    The latter two count in steps, which a short load may not reach.
    kind: "power", "energy" or "charge"; lost: it was charged meanwhile, or did not answer
    """

    directory: Path
    kind: str
    used_j: float = 0.0
    lost: bool = False
    _last: tuple[Gauge, float] | None = None

    @property
    def source(self) -> str:
        """For the record."""
        return f"battery {self.directory.name}, {self.kind}"

    @classmethod
    def of(cls, sys: Path) -> Battery | None:
        """The first battery that says anything; None where there is none."""
        for directory in sorted(sys.glob("class/power_supply/*")):
            if (read_text(directory / "type") or "Battery") != "Battery" or read_text(directory / "scope") == "Device":
                continue  # none, or a mouse's
            kind = next((kind for kind in ("power", "energy", "charge") if gauge(directory, kind) is not None), None)
            if kind is not None:
                meter = cls(directory, kind)
                meter.read()
                return meter
        return None

    def read(self, now: float | None = None) -> None:
        """Count what was used since the last time. now: seconds, for tests."""
        value = gauge(self.directory, self.kind)
        if value is None or read_text(self.directory / "status") != DRAINING:
            self.lost = True
            return
        at = time.monotonic() if now is None else now
        if self._last is not None:
            before, then = self._last
            volts = (value.volts + before.volts) / 2
            if self.kind == "power":
                self.used_j += (value.amount + before.amount) / 2 * (at - then)
            else:
                self.used_j += (before.amount - value.amount) * (volts if self.kind == "charge" else 1.0)
        self._last = (value, at)

    def joules(self) -> float | None:
        """Since the begin; None where it was charged meanwhile, did not answer, or has not moved."""
        return None if self.lost or self.used_j <= 0 else self.used_j


@dataclass(frozen=True)
class Gauge:
    """What a battery tells: amount in watts, joules or coulombs; volts at that moment, 0 where they are not needed."""

    amount: float
    volts: float = 0.0


def gauge(directory: Path, kind: str) -> Gauge | None:
    """The power of a battery, or the energy or charge in it; None where it does not tell.

    The kernel's units are millionths, and hours. Some drivers count a current that flows out as negative, and some
    count it in thousandths: a power that no machine which computes is content with is none.
    """
    volts = (read_number(directory / "voltage_now") or 0) / 1e6
    if kind == "power":
        power, current = read_number(directory / "power_now"), read_number(directory / "current_now")
        watts = abs(power) / 1e6 if power else abs(current or 0) / 1e6 * volts
        return Gauge(watts) if watts >= LEAST_WATTS else None
    if kind == "energy":
        energy = read_number(directory / "energy_now")
        return None if energy is None else Gauge(energy * 3600 / 1e6)
    charge = read_number(directory / "charge_now")
    return Gauge(charge * 3600 / 1e6, volts) if charge is not None and volts else None


def energy_meter(sys: Path = SYS) -> Rapl | Battery | None:
    """The best that this machine has; None where it has none."""
    return Rapl.of(sys) or Battery.of(sys)
