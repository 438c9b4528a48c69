"""The command line with doubles for the engines: exit statuses, messages, JSON, and what is left on disk."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from runtime.artifact import Artifact, record, write_manifest
from runtime.check import CapVerdict
from runtime.errors import EngineError, ModelError
from runtime.measurement import Measurement, MemorySplit, RunOptions, Stat, Trials
from runtime.series import Sustained, Window
from targets.base import Problem
from targets.drift import Parity
from targets.encoder_drift import EncoderDrift
from targets.facts import ModelFacts


class FakeTarget:
    """Writes a file of 1000 bytes. problems and error are what it finds and raises."""

    name = "gguf"
    problems: tuple[Problem, ...] = ()
    error: BaseException | None = None

    def presets(self):
        return {"q4_k_m": "4 bits", "q8_0": "8 bits"}

    def default_quant(self, _facts):
        return "q4_k_m"

    def check(self, _facts, _options):
        return list(self.problems)

    def emit(self, facts, options, out, progress):
        path = out / f"Tiny-{options.quant.upper()}.bin"
        path.write_bytes(bytes(1000))
        if self.error is not None:
            raise self.error
        progress("quantizing", 1000, 1000)
        return Artifact(
            out,
            "fake",
            path.name,
            "Tiny",
            options.quant,
            1600,
            5.0,
            64,
            facts.requested,
            files={path.name: record(path)},
        )


def fake_measure(artifact, options, trials, *, progress, command):
    progress("trial 1")
    one = Stat.of([20.0])
    return Measurement(
        load_s=0.5, first_token_ms=one, prefill_tokens_per_s=one, decode_tokens_per_s=one, peak_rss_bytes=200_000_000,
        memory=MemorySplit(1, 2, 3, 4), second_turn_growth_bytes=0, major_page_faults=0, options=options,
        trials=trials, host={"cpu": "Test"}, command=command,
    )  # fmt: skip


@pytest.fixture
def target(monkeypatch, tmp_path):
    fake = FakeTarget()
    monkeypatch.setattr("exporter.pipeline.get_target", lambda _name: fake)
    facts = ModelFacts("huggingface", tmp_path / "model", "Tiny", "./model", {}, {})
    monkeypatch.setattr("exporter.checkpoint.resolve", lambda _model, **_options: facts)
    monkeypatch.setattr("runtime.hosts.local.measure", fake_measure)
    return fake


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def export(out, *more):
    return run("export", "./model", "-o", out, "--no-verify", *more)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_budget_that_is_met(target, tmp_path):
    out = tmp_path / "out"
    done = export(out, "--max-memory", "300MB", "--min-speed", "10", "--device", "raspberry-pi-5")
    assert done.exit_code == 0
    written = [f"written: {out}/Tiny-Q4_K_M.bin", f"report: {out}/report.html"]
    assert done.stdout.splitlines()[-3:] == [*written, "verdict: not verified"]
    shown = [line.split("  ") for line in done.stdout.splitlines() if line.startswith("fits")]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in shown]
    assert cells == [["fits raspberry-pi-5", "200.0 MB on this host", "≤ 6,979.3 MB", "yes"]]
    assert "not on the Raspberry Pi 5 (8 GB)" in done.stdout
    assert names(out) == ["README.md", "Tiny-Q4_K_M.bin", "manifest.json", "report.html", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["artifact"]["root"] == str(out)
    assert [line["name"] for line in report["lines"]] == [
        "size", "bits per weight", "peak memory", "load", "first token", "prefill", "decode", "fits raspberry-pi-5",
    ]  # fmt: skip


def test_a_budget_that_is_not_met_keeps_the_artifact_and_says_so(target, tmp_path):
    out = tmp_path / "out"
    done = export(out, "--max-memory", "150MB")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "verdict: failed: peak memory 200.0 MB (budget ≤ 150.0 MB)"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verdict"] == "failed"
    assert [line["name"] for line in manifest["failing"]] == ["peak memory"]
    assert (out / "Tiny-Q4_K_M.bin").stat().st_size == 1000


def test_a_page_that_cannot_be_drawn_does_not_lose_the_export(target, tmp_path, monkeypatch):
    def odd(*arguments):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("exporter.report.page.article", odd)
    out = tmp_path / "out"
    done = export(out)
    assert done.exit_code == 0
    assert names(out) == ["README.md", "Tiny-Q4_K_M.bin", "manifest.json", "report.json"]
    note = "report.html could not be drawn (Tiny-Q4_K_M.bin: is a damaged report"
    assert note in json.loads((out / "report.json").read_text())["notes"][-1]
    assert note in done.stdout
    assert "report: " not in done.stdout


def test_an_engine_that_refuses_the_artifact_is_a_failed_check(target, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise EngineError("llama.cpp: unknown architecture")

    monkeypatch.setattr("runtime.hosts.local.measure", refuse)
    done = export(tmp_path / "out")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "verdict: failed: measure llama.cpp: unknown architecture"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["verdict"] == "failed"


def test_json_is_the_only_thing_on_standard_output(target, tmp_path):
    done = export(tmp_path / "out", "--json", "--no-measure")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["verdict"] == "not verified, not measured"
    assert "writing gguf q4_k_m" in done.stderr


def test_quiet_says_nothing(target, tmp_path):
    done = export(tmp_path / "out", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_problems_are_listed_all_at_once_and_nothing_is_written(target, tmp_path):
    target.problems = (Problem("a", "is odd", "make it even"), Problem("b", "is missing", "add it"))
    done = export(tmp_path / "out", "--quiet")
    assert done.exit_code == 2
    assert done.stderr == "error: a: is odd; make it even\nb: is missing; add it\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ModelError("w: is NaN; train again"), 2, "error: w: is NaN; train again\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing was left behind\n"),
        (OSError(28, "No space left on device", "/out/m"), 2, "error: /out/m: No space left on device\n"),
    ],
)
def test_a_failure_while_writing_leaves_nothing(target, tmp_path, error, status, message):
    target.error = error
    done = export(tmp_path / "out", "--quiet")
    assert (done.exit_code, done.stderr) == (status, message)
    assert names(tmp_path) == []


def test_an_error_as_json(target, tmp_path):
    target.error = ModelError("w: is NaN; train again")
    done = export(tmp_path / "out", "--json", "--quiet")
    assert json.loads(done.stdout) == {"error": "w: is NaN; train again", "exit_status": 2}


def test_overwriting(target, tmp_path):
    out = tmp_path / "out"
    assert export(out).exit_code == 0
    refused = export(out, "--quiet", "--quant", "q8_0")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: {out}: is not empty; name another directory, or add --overwrite to replace an earlier export\n"
    )
    assert export(out, "--overwrite", "--quant", "Q8_0").exit_code == 0
    assert "Tiny-Q8_0.bin" in names(out)
    assert "Tiny-Q4_K_M.bin" not in names(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-memory", "lots"], "'lots' is not a size: write a number and a unit, for example 700MB or 0.5GiB"),
        (["--quant", "q4_k_x"],
         "unknown quantization 'q4_k_x': did you mean q4_k_m? 'packlight formats' lists them all"),
        (["--no-measure", "--min-speed", "3"],
         "a memory, load or speed budget needs a measurement; leave out --no-measure or the budget"),
        (["--no-measure", "--sustained", "5min"],
         "--sustained and --fill-context measure; leave out --no-measure or them"),
        (["--sustained", "soon"], "'soon' is not a duration: write a number and a unit, for example 300s or 5min"),
        (["--min-sustained-speed", "3"],
         "--min-sustained-speed needs a load that goes on; add --sustained, for example --sustained 5min"),
        (["--turns", "1025"],
         "1025 turns do not fit into a context of 2048 tokens: use --turns 1024 at most, or a larger --context"),
        (["--max-kl", "0.1"], "a drift budget needs verifying; leave out --no-verify or the budget"),
        (["--device", "toaster.toml"],
         "toaster.toml: cannot be read (No such file or directory); 'packlight devices' lists the profiles"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_status_2(target, tmp_path, arguments, message):
    done = export(tmp_path / "out", "--quiet", *arguments)
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")
    assert names(tmp_path) == []


def test_typers_own_usage_errors_are_status_2():
    assert run("export").exit_code == 2
    assert run("exprt").exit_code == 2
    assert run("export", "m", "-o", "x", "--context", "0").exit_code == 2


@pytest.mark.parametrize(("fits", "status", "verdict"), [(True, 0, "met"), (False, 1, "failed")])
def test_check(tmp_path, monkeypatch, fits, status, verdict):
    asked = []

    def check(artifact, options, trials, cap_bytes, *, progress, command):
        asked.append((options, cap_bytes))
        return CapVerdict(fits, 200, None, "cgroup-v1", "one sentence")

    monkeypatch.setattr("runtime.hosts.local.check", check)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    done = run("check", tmp_path / "m.gguf", "--max-memory", "100", "--json", "--threads", "3", "--no-mmap")
    assert done.exit_code == status
    assert asked == [(RunOptions(threads=3, mmap=False), 100)]
    document = json.loads(done.stdout)
    assert document["verdict"] == verdict
    assert document["lines"][-1] == {
        "name": "fits the cap", "value": 200.0, "limit": 100.0, "ok": fits, "text": "one sentence",
        "limit_text": "≤ 0.0 MB",
    }  # fmt: skip


def test_check_needs_a_budget(tmp_path):
    done = run("check", tmp_path / "m.gguf", "--quiet")
    assert done.exit_code == 2
    assert done.stderr == "error: check needs a memory budget; add --max-memory, for example --max-memory 700MB\n"


def test_lists():
    listed = {device["id"] for device in json.loads(run("devices", "--json").stdout)}
    assert "raspberry-pi-5" in listed
    assert "raspberry-pi-5    8.6 GB    ~7.0 GB" in run("devices").stdout
    assert "q4_k_m" in json.loads(run("formats", "--json").stdout)["gguf"]
    classes = json.loads(run("formats", "--architectures", "--json").stdout)
    assert classes["written"]["MixtralForCausalLM"] == "llama"
    assert "transformers 5 has no such class" in classes["refused"]["InternLM2ForCausalLM"]
    assert "LlamaForCausalLM" in run("formats", "--architectures").stdout
    assert run("--version").stdout.startswith("packlight 0.")


def encoder_directory(path):
    """What an export of an encoder leaves, with nothing to run in it."""
    path.mkdir()
    (path / "m.onnx").write_bytes(b"x")
    artifact = Artifact(
        path, "onnx", "m.onnx", "m", "int8", 4, 8.0, 40, "m", {"task": "feature-extraction"},
        {"m.onnx": record(path / "m.onnx")},
    )  # fmt: skip
    write_manifest(artifact)
    return path


def test_limits_of_the_other_kind_of_model_are_refused_before_any_work(target, tmp_path, monkeypatch):
    directory = encoder_directory(tmp_path / "encoder")
    for arguments, option in (
        (("measure", directory, "--min-speed", "10"), "--min-speed"),
        (("check", directory, "--max-memory", "1GB", "--max-first-token", "9"), "--max-first-token"),
        (("verify", directory, "--against", "./model", "--max-kl", "1"), "a KL, perplexity or top-1 limit"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1].startswith(f"error: {option} is for models that generate, this one is for")
    for option in ("--max-latency", "--min-cosine", "--min-label-agreement", "--min-rank-correlation"):
        done = run("export", "./model", "-o", tmp_path / "out", option, "0.5", *(["--quiet"]))
        assert done.exit_code == 2
        assert "is for encoders, this model is for text-generation" in done.stderr
    facts = ModelFacts("huggingface", tmp_path, "Tiny", "./model", {"architectures": ["BertModel"]}, {})
    monkeypatch.setattr("exporter.checkpoint.resolve", lambda _model, **_options: facts)
    done = export(tmp_path / "out", "--min-speed", "5")
    assert (done.exit_code, "--min-speed is for models that generate" in done.stderr) == (2, True)
    done = export(tmp_path / "out", "--fill-context")
    assert (done.exit_code, "--fill-context is for models that generate" in done.stderr) == (2, True)
    assert names(tmp_path) == ["encoder"]
    done = run("measure", directory, "--fill-context")
    assert (done.exit_code, "--fill-context is for models that generate" in done.stderr) == (2, True)


def test_what_more_is_measured_reaches_the_host(target, tmp_path, monkeypatch):
    asked = []

    def measured(artifact, options, trials, *, progress, command):
        asked.append(trials)
        load = Sustained(300.0, 900, (Window(150.0, 4.0), Window(300.0, 2.0)))
        return dataclasses.replace(
            fake_measure(artifact, options, trials, progress=progress, command=command), sustained=load
        )

    monkeypatch.setattr("runtime.hosts.local.measure", measured)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    more = ("--sustained", "5min", "--fill-context", "--turns", "10", "--min-sustained-speed", "3")
    done = run("measure", tmp_path / "m.gguf", *more)
    assert asked == [Trials(None, 64, 5, 600.0, 10, True, 300.0)]
    assert asked[0].allowed_s == 900.0
    assert done.exit_code == 1
    said = "sustained 2.0 tokens/s; first tenth 4.0, last tenth 2.0 (-50%) (budget ≥ 3.0 tokens/s)"
    assert done.stdout.splitlines()[-1] == f"verdict: failed: {said}"


def test_an_encoders_own_limits_reach_its_verdict(target, tmp_path, monkeypatch):
    directory = encoder_directory(tmp_path / "encoder")
    drift = EncoderDrift(
        0.97, 0.9, 0.99, 1.0, 0.99, None, 0.1, 8, 99, "feature-extraction", 40, "t", "0",
        Parity(1, (), True, None, None, None), "e", "r",
    )  # fmt: skip
    monkeypatch.setattr("exporter.verify.verify", lambda *_: drift)

    def verdict(*more):
        return run("verify", directory, "--against", "./model", *more).stdout.splitlines()[-1]

    assert verdict() == "verdict: failed: cosine 0.97000 (budget ≥ 0.99000)"  # 8 bits
    assert verdict("--min-cosine", "0.97") == "verdict: met"
    assert verdict("--min-cosine", "0.97", "--min-rank-correlation", "0.995").startswith("verdict: failed: rank corr")
    report = json.loads(run("verify", directory, "--against", "./model", "--json").stdout)
    assert report["drift"]["mean_cosine"] == 0.97


def test_the_preset_is_the_formats_own_where_none_is_named(target, tmp_path):
    target.default_quant = lambda facts: "q8_0" if facts.name == "Tiny" else ""
    assert export(tmp_path / "out").exit_code == 0
    assert "Tiny-Q8_0.bin" in names(tmp_path / "out")
    assert export(tmp_path / "other", "--quant", "q4_k_m").exit_code == 0
    assert "Tiny-Q4_K_M.bin" in names(tmp_path / "other")


def test_an_artifact_is_packed_and_unpacked(tmp_path):
    root = tmp_path / "artifact"
    root.mkdir()
    (root / "weights.bin").write_bytes(bytes(5000))
    files = {"weights.bin": record(root / "weights.bin")}
    write_manifest(Artifact(root, "fake", "weights.bin", "Tiny", "q", 1600, 5.0, 64, "x", files=files))
    archive, back = tmp_path / "a.pla", tmp_path / "back"
    ran = CliRunner().invoke(app, ["pack", str(root), "-o", str(archive), "--json"])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report["packed_bytes"] == archive.stat().st_size < report["bytes"]
    ran = CliRunner().invoke(app, ["unpack", str(archive), "-o", str(back)])
    assert ran.exit_code == 0, ran.output
    assert (back / "weights.bin").read_bytes() == bytes(5000)
    assert sorted(path.name for path in back.iterdir()) == ["manifest.json", "weights.bin"]
    shown = CliRunner().invoke(app, ["pack", str(root), "-o", str(tmp_path / "b.pla")]).stdout
    assert "written:" in shown
    ran = CliRunner().invoke(app, ["unpack", str(root / "weights.bin"), "-o", str(tmp_path / "no")])
    assert ran.exit_code == 2
    assert "is no packlight archive; name what 'packlight pack' has written" in ran.stderr


def test_a_directory_whose_name_is_not_utf_8(target, tmp_path):
    room = tmp_path / os.fsdecode(b"caf\xe9")
    room.mkdir()
    done = export(room / "out", "--json")
    assert done.exit_code == 0
    written = json.loads((room / "out" / "report.json").read_text(encoding="utf-8"))
    for report in (written, json.loads(done.stdout)):
        assert report["artifact"]["root"] == str(room / "out")
    assert names(room / "out") == ["README.md", "Tiny-Q4_K_M.bin", "manifest.json", "report.html", "report.json"]
    failed = run("measure", room / "none.gguf", "--json")
    assert failed.exit_code == 2
    assert str(room) in json.loads(failed.stdout)["error"]
