"""Temperature, frequency and energy from made-up trees of /sys, as odd as real ones are."""

from __future__ import annotations

import pytest

from runtime.sensors import Battery, Rapl, celsius, energy_meter, frequency_hz, temperature_c


def put(directory, **files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")
    return directory


def zone(sys, number, kind, temp):
    return put(sys / f"class/thermal/thermal_zone{number}", type=kind, temp=temp)


def test_a_machine_that_tells_nothing(tmp_path):
    assert (temperature_c(tmp_path), frequency_hz(tmp_path), energy_meter(tmp_path)) == (None, None, None)


@pytest.mark.parametrize(
    ("number", "degrees"),
    [(45_123, 45.123), (45, 45.0), (-5_000, -5.0), (-5, -5.0), (0, 0.0), (-274_000, None), (-273, None),
     (214_748_364, None), (199_000, None), (150, 150.0), (151, None), (385, None), (1_000, 1.0)],
)  # fmt: skip
def test_degrees_and_thousandths(number, degrees):
    assert celsius(number) == degrees


def test_the_processors_own_zone_goes_before_hotter_ones(tmp_path):
    zone(tmp_path, 0, "battery", 61_000)
    zone(tmp_path, 1, "gpu-thermal", 90_000)
    zone(tmp_path, 2, "cpu-0-1-usr", 55_000)
    zone(tmp_path, 3, "CPU-Big", 58_500)
    zone(tmp_path, 4, "x86_pkg_temp", -274_000)
    assert temperature_c(tmp_path) == 58.5


def test_where_no_zone_is_the_processors_the_hottest_counts_that_is_nothing_else(tmp_path):
    zone(tmp_path, 0, "acpitz", 40_000)
    zone(tmp_path, 1, "gpu-thermal", 41_000)
    zone(tmp_path, 2, "soc", 95)  # the state of charge
    assert temperature_c(tmp_path) == 40.0


def test_a_sensor_that_is_no_zone(tmp_path):
    zone(tmp_path, 0, "acpitz", 40_000)
    put(tmp_path / "class/hwmon/hwmon0", name="k10temp", temp1_input=52_000, temp3_input=54_000)
    put(tmp_path / "class/hwmon/hwmon1", name="nvme", temp1_input=70_000)
    assert temperature_c(tmp_path) == 54.0


def test_zones_that_cannot_be_read_are_passed_over(tmp_path):
    zone(tmp_path, 0, "cpu", "n/a")
    (zone(tmp_path, 1, "cpu", 1) / "temp").unlink()
    (tmp_path / "class/thermal/thermal_zone2/temp").mkdir(parents=True)  # reading it is an OSError, as of one asleep
    assert temperature_c(tmp_path) is None
    put(tmp_path / "class/thermal/thermal_zone3", temp=37)  # without a type
    assert temperature_c(tmp_path) == 37.0


def test_the_fastest_core(tmp_path):
    for core, kilohertz in enumerate((600_000, 2_400_000, "<unsupported>")):
        put(tmp_path / f"devices/system/cpu/cpu{core}/cpufreq", scaling_cur_freq=kilohertz)
    put(tmp_path / "devices/system/cpu/cpufreq/cpufreq", scaling_cur_freq=9_000_000)  # no core
    assert frequency_hz(tmp_path) == 2_400_000_000


def rapl(sys, name, kind, energy, **more):
    return put(sys / "class/powercap" / name, name=kind, energy_uj=energy, max_energy_range_uj=1_000_000, **more)


def test_packages_are_summed_and_their_parts_are_not_counted_twice(tmp_path):
    one, two = rapl(tmp_path, "intel-rapl:0", "package-0", 100), rapl(tmp_path, "intel-rapl:1", "package-1", 0)
    core, whole = rapl(tmp_path, "intel-rapl:0:0", "core", 0), rapl(tmp_path, "intel-rapl:2", "psys", 0)
    meter = energy_meter(tmp_path)
    for directory, now in ((one, 500_100), (two, 250_000), (core, 400_000), (whole, 900_000)):
        put(directory, energy_uj=now)
    meter.read()
    assert (meter.joules(), meter.source) == (0.75, "RAPL, processor packages")


def test_a_counter_that_begins_again(tmp_path):
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = Rapl.of(tmp_path)
    for now in (100_000, 600_000, 50_000):  # 200,000 + 500,000 + 450,000
        put(package, energy_uj=now)
        meter.read()
    assert meter.joules() == pytest.approx(1.15)


def test_a_counter_that_cannot_be_followed_gives_no_figure(tmp_path):
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    (package / "max_energy_range_uj").unlink()
    meter = Rapl.of(tmp_path)
    put(package, energy_uj=100_000)
    meter.read()
    assert meter.joules() is None
    meter = Rapl.of(tmp_path)
    (package / "energy_uj").unlink()
    meter.read()
    assert meter.joules() is None


def test_one_package_that_may_not_be_read_is_none_at_all(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 900_000)
    (rapl(tmp_path, "intel-rapl:1", "package-1", 1) / "energy_uj").unlink()
    assert energy_meter(tmp_path) is None


def battery(sys, name="BAT0", **files):
    return put(sys / "class/power_supply" / name, **{"type": "Battery", "status": "Discharging", **files})


def measured(sys, *states, seconds=10.0):
    """Joules after the gauge has gone through `states`, so many seconds apart."""
    directory = next((sys / "class/power_supply").iterdir())
    meter = Battery.of(sys)
    meter._last = (meter._last[0], 0.0)
    for number, files in enumerate(states, 1):
        put(directory, **files)
        meter.read(now=number * seconds)
    return meter.joules(), meter.source


def test_power_over_time(tmp_path):
    battery(tmp_path, power_now=4_000_000, energy_now=50_000_000)
    found = measured(tmp_path, {"power_now": 6_000_000}, {"power_now": -6_000_000})
    assert found == (pytest.approx(110.0), "battery BAT0, power")  # 5 W and 6 W for 10 s each


def test_current_and_voltage_are_power_whatever_the_sign(tmp_path):
    battery(tmp_path, "bms", current_now=-1_000_000, voltage_now=4_000_000, charge_now=1)
    assert measured(tmp_path, {"current_now": -500_000}) == (pytest.approx(30.0), "battery bms, power")


def test_energy_and_charge_by_difference(tmp_path):
    battery(tmp_path, energy_now=50_000_000, power_now=0)
    assert measured(tmp_path, {"energy_now": 49_990_000}) == (pytest.approx(36.0), "battery BAT0, energy")
    (tmp_path / "class/power_supply/BAT0/energy_now").unlink()
    battery(tmp_path, charge_now=3_000_000, voltage_now=4_000_000)
    assert measured(tmp_path, {"charge_now": 2_990_000}) == (pytest.approx(144.0), "battery BAT0, charge")


def test_a_voltage_that_falls_is_not_taken_from_all_of_the_charge(tmp_path):
    battery(tmp_path, charge_now=3_000_000, voltage_now=4_000_000)
    last = {"charge_now": 2_990_000, "voltage_now": 3_800_000}
    assert measured(tmp_path, last)[0] == pytest.approx(0.01 * 3600 * 3.9)


def test_a_current_in_thousandths_is_no_power(tmp_path):
    battery(tmp_path, current_now=-1_000, voltage_now=4_000_000, energy_now=50_000_000)
    assert measured(tmp_path, {"energy_now": 49_990_000}) == (pytest.approx(36.0), "battery BAT0, energy")


def test_the_battery_of_a_mouse_is_none(tmp_path):
    battery(tmp_path, "hidpp_battery_0", scope="Device", power_now=4_000_000)
    assert Battery.of(tmp_path) is None


def test_a_counter_that_does_not_move_is_no_figure(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 7)
    meter = energy_meter(tmp_path)
    meter.read()
    assert meter.joules() is None


@pytest.mark.parametrize(
    "last",
    [
        {"status": "Charging", "energy_now": 49_000_000},
        {"status": "Full", "energy_now": 49_000_000},
        {"energy_now": "?"},
        {"energy_now": 50_000_000},
        {"energy_now": 51_000_000},
    ],
)
def test_no_figure_where_it_charged_did_not_answer_or_did_not_move(tmp_path, last):
    battery(tmp_path, energy_now=50_000_000)
    assert measured(tmp_path, last)[0] is None


def test_what_is_no_battery_or_says_nothing_is_passed_over(tmp_path):
    battery(tmp_path, "AC", type="Mains", power_now=9_000_000)
    battery(tmp_path, "BAT0")
    assert Battery.of(tmp_path) is None
    battery(tmp_path, "BAT1", energy_now=7)
    assert energy_meter(tmp_path).source == "battery BAT1, energy"


def test_the_processors_counter_goes_before_the_battery(tmp_path):
    battery(tmp_path, power_now=1)
    rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    assert energy_meter(tmp_path).source.startswith("RAPL")
