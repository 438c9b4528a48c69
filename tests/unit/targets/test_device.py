"""Device profiles: what ships is valid, and a bad file gives one clear line."""

from __future__ import annotations

import pytest

from runtime.errors import UserError
from targets.device import KINDS, list_devices, load_device
from targets.processor import Processor

PROFILE = """\
id = "my-board"
name = "My board"
os = "linux"
chip = "Some SoC"
formats = ["gguf"]

[memory]
value = "2GiB"
kind = "measured"
source = "free -b"

[usable]
value = "1.5GiB"
kind = "estimate"
source = "a guess"

[bandwidth]
value = "12.8GB"
kind = "computed"
source = "32 bit x 3200 MT/s / 8"

[cores]
value = 4
kind = "vendor"
source = "data sheet"
"""


def test_the_profiles_that_ship():
    devices = {device.id: device for device in list_devices()}
    wanted = {
        "iphone-15-pro", "iphone-16-pro", "pixel-8", "pixel-9", "galaxy-s24", "oneplus-12", "galaxy-a16",
        "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "rk3588", "intel-n100",
    }  # fmt: skip
    assert wanted <= set(devices)
    for device in devices.values():
        assert set(device.sources) == {"memory", "usable", "bandwidth", "cores"}
        assert all(source.kind in KINDS and source.text for source in device.sources.values())
        usable = device.sources["usable"]
        assert usable.kind == "measured" or (usable.kind == "estimate" and "rule" in usable.text)
        assert usable.kind != "measured" or "https://" in usable.text
        assert 0 < device.usable_bytes < device.memory_bytes
        assert "gguf" in device.formats


def test_a_limit_that_a_system_has_named():
    device = load_device("iphone-15-pro")
    assert device.usable_bytes == 3376 * 2**20
    assert device.sources["usable"].kind == "measured"


def test_a_profile_is_found_by_its_file_name():
    for device in list_devices():
        assert load_device(device.id) == device
        assert load_device(device.id.upper()) == device


def test_figures_of_the_raspberry_pi_5():
    device = load_device("raspberry-pi-5")
    assert device.memory_bytes == 8 * 2**30
    assert device.usable_bytes == 6.5 * 2**30
    assert device.bandwidth_bytes_per_s == 17_100_000_000
    assert device.cores == 4
    assert device.to_json()["bandwidth_bytes_per_s"] == {
        "value": 17_100_000_000,
        "kind": "computed",
        "source": "32 bit x 4267 MT/s / 8 (LPDDR4X-4267)",
    }


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(UserError) as caught:
        load_device("rasberry-pi-5")
    assert str(caught.value) == (
        "unknown device 'rasberry-pi-5': did you mean raspberry-pi-5 or raspberry-pi-4? or name your own .toml file"
    )


def test_a_device_like_none_lists_the_known():
    with pytest.raises(UserError, match=r"^unknown device 'zzz': known: galaxy-a16, galaxy-s24, .*; or name your own"):
        load_device("zzz")


def test_a_users_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    device = load_device(str(path))
    assert (device.id, device.memory_bytes, device.usable_bytes) == ("my-board", 2 * 2**30, 3 * 2**29)
    assert device.sources["memory"].text == "free -b"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('os = "linux"', 'os = "beos"', "os 'beos' is unknown; write one of android, ios, linux, macos, windows"),
        ('name = "My board"\n', "", 'name is missing or not a text; write name = "…"'),
        ('["gguf"]', '"gguf"', 'formats has to be a list of names, for example formats = ["gguf"]'),
        ('"2GiB"', "2", 'memory.value has to be a size in quotes, for example "8GiB"'),
        ('"2GiB"', '"2 lots"', "memory.value: '2 lots' is not a size: write a number and a unit, for example 700MB"),
        ('"1.5GiB"', '"3GiB"', "usable.value is more than memory.value; one app cannot use more than there is"),
        ('kind = "computed"', 'kind = "felt"', "bandwidth.kind 'felt' is unknown; write one of vendor, measured"),
        ('source = "free -b"\n', "", "[memory] has value, kind; it needs value, kind and source"),
        ("value = 4", "value = 0", "cores.value has to be a whole number of at least 1"),
        ("[cores]", "[kernels]", "unknown key 'kernels'; a profile has id, name, os, chip, arch, features, formats"),
        ('os = "linux"', 'os = "linux"\narch = "arm"', "arch 'arm' is unknown; write one of aarch64, x86_64"),
        (
            'os = "linux"',
            'os = "linux"\nfeatures = ["avx2"]',
            'features without arch; write arch = "…" as well, one of',
        ),
        (
            'os = "linux"',
            'os = "linux"\narch = "x86_64"\nfeatures = ["dotprod"]',
            "features has to be a list of some of avx2, avx512, the instructions of x86_64",
        ),
        (
            'os = "linux"',
            'os = "linux"\narch = "aarch64"\nfeatures = [["dotprod"]]',
            "features has to be a list of some",
        ),
    ],
)
def test_a_bad_profile(tmp_path, old, new, message):
    path = tmp_path / "bad.toml"
    assert old in PROFILE
    path.write_text(PROFILE.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_device(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_the_kind_of_processor_is_optional(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    assert load_device(str(path)).arch is None
    assert "arch" not in load_device(str(path)).to_json()
    path.write_text(PROFILE.replace('os = "linux"', 'os = "linux"\narch = "aarch64"'))
    assert load_device(str(path)).to_json()["arch"] == "aarch64"
    assert load_device(str(path)).processor == Processor.usual("aarch64")
    path.write_text(PROFILE.replace('os = "linux"', 'os = "linux"\narch = "x86_64"\nfeatures = ["avx512"]'))
    assert load_device(str(path)).to_json()["features"] == ["avx512"]
    assert load_device(str(path)).processor == Processor("x86_64", frozenset({"avx512"}))


ONNXRUNTIME = """
[onnxruntime]
version = "1.22"
kind = "vendor"
source = "build.gradle of our app"
"""


def test_the_version_of_onnx_runtime_is_optional(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    assert load_device(str(path)).onnxruntime is None
    assert "onnxruntime" not in load_device(str(path)).to_json()
    path.write_text(PROFILE + ONNXRUNTIME)
    device = load_device(str(path))
    assert device.onnxruntime == "1.22"
    assert device.to_json()["onnxruntime"] == {
        "version": "1.22",
        "kind": "vendor",
        "source": "build.gradle of our app",
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1.22"', "1.22", 'onnxruntime.version has to be a version in quotes, for example "1.23"'),
        ('"1.22"', '"newest"', 'onnxruntime.version has to be a version in quotes, for example "1.23"'),
        ('kind = "vendor"\nsource = "build', 'source = "build', "[onnxruntime] needs version, kind and source"),
        ('"vendor"\nsource = "build', '"felt"\nsource = "build', "onnxruntime.kind 'felt' is unknown; write one of"),
    ],
)
def test_a_bad_version_of_onnx_runtime(tmp_path, old, new, message):
    path = tmp_path / "bad.toml"
    assert old in ONNXRUNTIME
    path.write_text(PROFILE + ONNXRUNTIME.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_device(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_figure_and_a_missing_file(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(PROFILE.split("[cores]")[0])
    with pytest.raises(UserError) as caught:
        load_device(str(path))
    assert str(caught.value) == f"{path}: [cores] is missing; it needs value, kind and source"
    with pytest.raises(
        UserError, match=r"none.toml: cannot be read \(No such file or directory\); 'packlight devices'"
    ):
        load_device(str(tmp_path / "none.toml"))


def test_a_file_that_is_not_toml(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("id = \n")
    with pytest.raises(UserError, match=r"bad.toml: is not TOML \(.*line 1"):
        load_device(str(path))
