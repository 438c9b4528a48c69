"""`packlight plan`: rows, limits, what is best, and the command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.plan import PlanRequest, best_of, calibration_path, plan, this_host
from runtime.budget import Budget
from runtime.errors import UserError
from runtime.host import default_threads, host_facts
from targets.device import load_device
from targets.processor import Processor
from targets.speed import EngineSpeed, HostSpeed


@pytest.fixture
def planned(tiny_llama):
    def make(budget=None, **more):
        return plan(PlanRequest(str(tiny_llama), budget or Budget(), **more))

    return make


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_every_preset_of_every_format_has_a_row(planned):
    from targets import get_target

    report = planned()
    named = {(row.format, row.quant) for row in report.rows} | {
        (name, preset) for name, presets in report.refused.items() for preset in presets
    }
    every = {(name, preset) for name in ("gguf", "onnx") for preset in get_target(name).presets()}
    assert named == every - {("gguf", "copy")}  # which is for .gguf sources
    assert all(row.fits is None for row in report.rows)
    assert report.speeds == "unknown"
    assert "calibrate-host" in " ".join(report.notes)


def test_contexts_and_types_of_cache_make_a_row_each(planned):
    rows = planned(formats=["gguf"], quants=["q4_0"], contexts=[256, 512], kv_types=["f16", "f32"]).rows
    assert [(row.context, row.kv_type) for row in rows] == [(256, "f16"), (256, "f32"), (512, "f16"), (512, "f32")]
    caches = [row.footprint.kv_cache_bytes for row in rows]
    assert caches[1] == caches[2] == 2 * caches[0]


def test_a_graph_has_the_cache_that_it_was_made_with(planned):
    (row,) = planned(formats=["onnx"], quants=["fp32"], kv_types=["q8_0"]).rows
    assert row.kv_type == "f32"


def test_limits_are_held_and_named(planned):
    free = planned(formats=["gguf"]).rows
    middle = sorted(row.peak_bytes for row in free)[len(free) // 2]
    report = planned(Budget(max_memory_bytes=middle), formats=["gguf"])
    assert {row.fits for row in report.rows} == {True, False}
    for row in report.rows:
        assert row.fits == (row.peak_bytes <= middle)
        assert row.fits or row.over[0].startswith("memory ")


def test_nothing_fits_is_a_failure_of_the_command(planned, tiny_llama):
    report = planned(Budget(max_artifact_bytes=10))
    assert (report.best, report.exit_status) == (None, 1)
    done = run(tiny_llama, "--max-size", "10B")
    assert done.exit_code == 1
    assert "nothing fits" in done.stdout


def test_a_device_limits_memory_and_bounds_the_speed(planned):
    device = load_device("raspberry-pi-5")
    report = planned(device=device, formats=["gguf"], quants=["q8_0"])
    (row,) = report.rows
    assert (row.fits, report.speeds, row.prefill_tokens_per_s) == (True, "bound", None)
    assert row.decode_tokens_per_s > 0
    tiny = dataclasses.replace(device, usable_bytes=1000)
    (row,) = planned(device=tiny, formats=["gguf"], quants=["q8_0"]).rows
    assert row.over[0].startswith("usable memory ")


def test_a_device_without_a_format_has_no_rows_of_it(planned):
    device = dataclasses.replace(load_device("raspberry-pi-5"), formats=("gguf",))
    assert {row.format for row in planned(device=device).rows} == {"gguf"}
    with pytest.raises(UserError, match="raspberry-pi-5 runs no onnx"):
        planned(device=device, formats=["onnx"])


def a_speed(threads=None, cpu=None):
    engine = EngineSpeed(
        {"Q8_0": 1e-9}, {"Q8_0": 1e-10}, 1e-5, {"f16": 1e-9, "q8_0": 1e-9}, {"f16": 1e-10, "q8_0": 1e-10}
    )
    return HostSpeed(cpu or host_facts()["cpu"], threads or default_threads(), 1e10, {"gguf": engine}, "2026-01-01")


def test_a_calibration_gives_speeds_and_what_is_not_known_does_not_fit(planned):
    report = planned(Budget(min_decode_tokens_per_s=0.001), speed=a_speed(), formats=["gguf"])
    known = {row.quant: row for row in report.rows if row.decode_tokens_per_s is not None}
    # all their matrices are of the one type that was measured: 64 columns, and no experts
    assert set(known) == {"q8_0", "q6_k", "mxfp4_moe"}
    assert known["q8_0"].fits
    (unknown,) = [row for row in report.rows if row.quant == "q4_0"]
    assert (unknown.over, unknown.unknown, unknown.fits) == ((), ("decode",), None)
    assert report.best.quant in known
    assert report.speeds == "calibrated"


def test_a_calibration_of_another_machine_or_other_threads_is_not_used():
    assert this_host(a_speed(), None) is not None
    assert this_host(a_speed(), default_threads() + 1) is None
    assert this_host(a_speed(cpu="another"), None) is None
    assert this_host(None, None) is None


def test_the_best_has_most_bits_up_to_eight_and_then_least_memory(planned):
    rows = planned(formats=["gguf"]).rows
    assert best_of(rows).quant == "q8_0"
    few = [row for row in rows if row.bits_per_weight < 8]
    assert best_of(few).bits_per_weight == max(row.bits_per_weight for row in few)
    assert best_of([]) is None


def test_a_row_of_unknown_memory_is_never_the_best(planned):
    report = planned(Budget(max_artifact_bytes=10**9))
    assert {row.quant for row in report.rows if row.peak_bytes is None} >= {"static-int8"}
    assert report.best.peak_bytes is not None
    least = min(row.peak_bytes for row in report.rows if row.bits_per_weight >= 8 and row.peak_bytes is not None)
    assert report.best.peak_bytes == least


def test_the_wider_cache_is_better_up_to_half_floats(planned):
    half, full = planned(formats=["gguf"], quants=["q8_0"], kv_types=["f16", "f32"]).rows
    codes = dataclasses.replace(half, kv_type="q8_0", footprint=dataclasses.replace(half.footprint, kv_cache_bytes=1))
    assert best_of([codes, half, full]) == half


def test_bits_that_the_source_does_not_have_are_worth_nothing(planned):
    rows = planned(formats=["gguf"]).rows
    assert best_of(rows, 4.5).bits_per_weight >= 4.5
    assert best_of(rows, 4.5).peak_bytes == min(row.peak_bytes for row in rows if row.bits_per_weight >= 4.5)


def test_a_context_that_the_model_does_not_hold_is_refused(planned):
    with pytest.raises(UserError, match=r"nothing to plan; gguf: holds 2048 tokens, --context says 4096"):
        planned(contexts=[4096])


def test_a_context_that_one_format_does_not_hold_leaves_the_others(tiny_model_dir):
    long = tiny_model_dir("llama", max_position_embeddings=65536)
    report = plan(PlanRequest(str(long), Budget(), contexts=[40000], quants=["q8_0", "int8"]))
    assert [(row.format, row.context) for row in report.rows] == [("gguf", 40000)]
    assert report.refused["onnx"] == {"int8": "holds 32768 tokens, --context says 40000"}


def test_a_cache_that_the_heads_cannot_have_is_refused_by_name(planned):
    with pytest.raises(UserError, match=r"no whole blocks of 32, which a KV cache of q8_0 needs"):
        planned(formats=["gguf"], kv_types=["q8_0"])


def test_the_cache_of_a_recipe_is_taken(planned, monkeypatch):
    monkeypatch.setattr("exporter.plan.recorded_kv_type", lambda _path: "f32")
    assert {row.kv_type for row in planned(formats=["gguf"]).rows} == {"f32"}
    assert {row.kv_type for row in planned(formats=["gguf"], kv_types=["f16"]).rows} == {"f16"}


def test_without_mapping_there_is_no_onnx(planned):
    report = planned(mmap=False)
    assert {row.format for row in report.rows} == {"gguf"}
    assert "--no-mmap" in report.refused["onnx"]["int4"]


def test_the_engine_of_a_device_is_asked(planned):
    old = dataclasses.replace(load_device("raspberry-pi-5"), onnxruntime="1.16")
    report = planned(device=old, quants=["int4", "q8_0"])
    assert {row.format for row in report.rows} == {"gguf"}
    assert "has ONNX Runtime 1.16" in report.refused["onnx"]["int4"]


def test_one_preset_that_cannot_be_written_leaves_the_others(planned, monkeypatch):
    monkeypatch.setattr("targets.onnx.plan.LARGEST_DATA_FILE", 100_000)
    report = planned(formats=["onnx"])
    assert "fp32" in report.refused["onnx"]
    assert report.rows


def test_types_that_are_named_are_those_of_gguf_alone(tiny_llama):
    arguments = (tiny_llama, "--quant", "q4_0", "--quant", "q8_0", "--json")
    plain, pure = (json.loads(run(*arguments, *more).stdout)["rows"] for more in (["--format", "gguf"], ["--pure"]))
    assert [row["format"] for row in pure] == ["gguf", "gguf"]
    (before, eight), (after, same) = ([row["file_bytes"] for row in rows] for rows in (plain, pure))
    assert after < before
    assert same == eight


def test_a_phone_that_does_not_say_is_an_arm():
    device = dataclasses.replace(load_device("pixel-8"), arch=None)
    assert device.processor == Processor.usual("aarch64")
    assert dataclasses.replace(device, os="linux").processor == Processor.here()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pdf"], "unknown format 'pdf'"),
        (["--format", "ort"], "ort is not planned yet"),
        (["--quant", "q9"], "unknown quantization 'q9'"),
        (["--device", "nokia"], "unknown device 'nokia'"),
        (["--kv-type", "f17"], "'f17' is not a type of KV cache"),
        (["--max-memory", "much"], "much"),
        (["--format", "onnx", "--quant", "q4_0"], "unknown quantization 'q4_0'"),
        (["--format", "onnx", "--pure"], "--format onnx: --imatrix, --rule, --pure, --output-type and"),
        (["--rule", "ffn_down"], "--rule ffn_down: is no PATTERN=TYPE"),
        (["--rule", "ffn_dwon=q8_0"], "--rule ffn_dwon=q8_0: is found in no tensor's name"),
        (["--imatrix", "nothing.gguf"], "nothing.gguf: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(tiny_llama, arguments, said):
    done = run(tiny_llama, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_no_format_takes_says_why(tiny_llama, tmp_path):
    import shutil

    source = tmp_path / "model"
    shutil.copytree(tiny_llama, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    done = run(source)
    assert done.exit_code == 2
    assert "nothing to plan" in done.stderr
    assert "NoSuchForCausalLM" in done.stderr


def test_json(tiny_llama):
    done = run(tiny_llama, "--json", "--format", "gguf", "--quant", "Q8_0", "--max-memory", "1GB")
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert row["peak_bytes"] == sum(row["footprint"].values())
    assert (row["fits"], document["best"], row["exact"]) == (True, row, True)


def test_an_encoder_has_rows_without_decoding(tmp_path):
    from support.tiny_encoders import make_tiny_bert

    done = run(make_tiny_bert(tmp_path), "--json")
    document = json.loads(done.stdout)
    assert {row["format"] for row in document["rows"]} == {"gguf", "onnx"}
    assert all(row["decode_tokens_per_s"] is None and row["kv_type"] is None for row in document["rows"])
    assert all(row["peak_bytes"] is not None for row in document["rows"])


def test_an_encoder_is_held_against_a_device(tmp_path):
    from support.tiny_encoders import make_tiny_bert

    directory = make_tiny_bert(tmp_path)
    assert "best that fits: --format gguf" in run(directory, "--device", "pixel-8").stdout
    done = run(directory, "--device", "pixel-8", "--format", "onnx")
    assert done.exit_code == 0
    assert "best that fits: --format onnx" in done.stdout
    assert "unknown" not in done.stdout


def test_what_is_not_known_is_no_failure(tiny_llama):
    done = run(tiny_llama, "--device", "pixel-8", "--format", "onnx", "--quant", "static-int8")
    assert done.exit_code == 0
    assert "not known beforehand" in done.stdout
    assert "unknown" in done.stdout


def test_neither_torch_nor_weights_are_read(tiny_llama, tmp_path):
    import shutil

    source = tmp_path / "model"
    shutil.copytree(tiny_llama, source)
    weights = source / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:  # all behind the header is a hole: NaN or not, nobody looks
        header = 8 + int.from_bytes(file.read(8), "little")
        file.truncate(header)
        file.truncate(size)
    code = (
        "import sys\nfrom exporter.cli import main\ntry:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", source, "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert json.loads(done.stdout)["rows"] == json.loads(run(tiny_llama, "--json").stdout)["rows"]


def test_calibrate_host_is_what_plan_reads(tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setenv("PACKLIGHT_HOME", str(tmp_path))
    monkeypatch.setattr("exporter.calibrate_host.calibrate", lambda _threads, _formats, _reporter: a_speed())
    calibration_path(None).write_text("{")  # damaged: it is replaced
    assert CliRunner().invoke(app, ["calibrate-host"]).exit_code == 0
    document = json.loads(run(tiny_llama, "--format", "gguf", "--quant", "q8_0", "--json").stdout)
    assert document["speeds"] == "calibrated"
    assert document["rows"][0]["decode_tokens_per_s"] > 0
