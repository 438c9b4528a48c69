"""Budget files: what they say, what is wrong with them, and what a run of their checks leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.cli.budget_file import load_checks
from exporter.report.junit import junit
from exporter.report.report import Provenance, Report
from runtime.artifact import Artifact
from runtime.budget import Budget, at_most
from runtime.hosts.adb.host import AdbHost
from runtime.hosts.ssh import Address, SshHost
from runtime.measurement import RunOptions, Trials
from targets.device import DEVICES
from targets.drift import Thresholds

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "golden-q4_k_m.gguf"
QUICK = "trials = 1\nprompt_tokens = 8\ndecode_tokens = 2\ncontext = 64\nthreads = 1\n"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes packlight.toml beside a copy of the golden file, and stands there."""
    shutil.copy(GOLDEN, tmp_path / "golden.gguf")
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "packlight.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_key_is_an_option_by_the_same_name(written, tmp_path):
    checks = load_checks(
        written(
            """
            [checks.phone]
            artifact = "out/model.gguf"
            device = "raspberry-pi-5"
            max_memory = "300MB"
            max_size = "120MB"
            max_load = 2
            max_first_token = 800.5
            min_prefill = 100
            min_speed = 10
            context = 512
            threads = 3
            batch = 64
            no_mmap = true
            kv_type = "Q8_0"
            trials = 2
            prompt_tokens = 32
            decode_tokens = 8
            turns = 10
            fill_context = true
            sustained = "5min"
            min_sustained_speed = 8
            timeout = 60
            on = "ssh:pi@board"
            remote_python = "/opt/python"
            against = "some/model"
            revision = "main"
            max_kl = 0.1
            min_same_top1 = 0.9
            chunks = 3
            """
        )
    )
    one = checks["phone"]
    assert one.artifact == tmp_path / "out" / "model.gguf"
    limits = Budget(300_000_000, 120_000_000, 2.0, 800.5, 100.0, 10.0, min_sustained_tokens_per_s=8.0)
    assert one.limits.budget == limits
    assert one.limits.device.id == "raspberry-pi-5"
    assert one.limits.drift == Thresholds(0.1, None, None, 0.9)
    assert one.running.options == RunOptions(3, 512, 64, mmap=False, kv_type="q8_0")
    assert one.running.trials == Trials(32, 8, 2, 60.0, 10, True, 300.0)
    assert one.running.host == SshHost(Address("board", "pi"), "/opt/python")
    source, how = one.verifying
    assert (source.model, source.revision) == ("some/model", "main")
    assert (how.chunks, how.threads, how.kv_type) == (3, 3, "q8_0")


def test_paths_are_the_files_own(written, tmp_path, monkeypatch):
    """Not the working directory's: it is the file that is checked in."""
    (tmp_path / "model").mkdir()
    shutil.copy(DEVICES / "raspberry-pi-5.toml", tmp_path / "board.toml")
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(
        '[checks.a]\nartifact = "g.gguf"\nagainst = "model"\ndevice = "board.toml"\ntext = "text.txt"\n'
        '[checks.b]\nartifact = "~/g.gguf"\nagainst = "~/model"\n'
    )
    monkeypatch.chdir("/")
    one, other = load_checks(path)["a"], load_checks(path)["b"]
    assert (other.artifact, other.verifying[0].model) == (tmp_path / "g.gguf", str(tmp_path / "model"))
    assert one.verifying[0].model == str(tmp_path / "model")
    assert one.verifying[1].text == tmp_path / "text.txt"
    assert one.limits.device.name == "Raspberry Pi 5 (8 GB)"


def test_the_tools_for_a_phone_are_beside_the_file(written, tmp_path):
    """The same budget is checked from wherever packlight is started."""
    path = written('[checks.a]\nartifact = "g.gguf"\nmax_memory = "1GB"\non = "adb:A1"\nengine = "tools"\n')
    assert load_checks(path)["a"].running.host == AdbHost("A1", tmp_path / "tools")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("checks = [", "is not TOML"),
        ("", "checks: is missing; write it"),
        ("[checks]", "checks: dictionary should have at least 1 item"),
        ("[check.a]", "checks: is missing"),
        ("[checks.a]\nmax_memory = '1GB'", "checks.a.artifact: is missing; write it"),
        ("[checks.a]\nartifact = 'g'\nmax_ram = '1GB'", "checks.a.max_ram: is no key here; a check"),
        ("[checks.a]\nartifact = 'g'\nmax_memory = 5", "checks.a.max_memory: input should be a valid"),
        ("[checks.a]\nartifact = 'g'\nmax_memory = 'much'", "checks.a: 'much' is not a size"),
        ("[checks.a]\nartifact = 'g'\nmin_speed = '9'", "checks.a.min_speed: input should be a valid"),
        ("[checks.a]\nartifact = 'g'\ncontext = 3", "checks.a.context: input should be greater"),
        ("[checks.a]\nartifact = 'g'\ndevice = 'pi'", "checks.a: unknown device 'pi'"),
        ("[checks.a]\nartifact = 'g'\nmax_kl = 0.1", "checks.a: max_kl, chunks and their kin need the model"),
        ("[checks.a]\nartifact = 'g'\nmax_size = '1GB'\nchunks = 3", "checks.a: max_kl, chunks and their kin need"),
        ("[checks.a]\nartifact = 'golden.gguf'\nmax_size = '1GB'\nkv_type = 'q9'", "checks.a: 'q9' is not a type of"),
        ("[checks.a]\nartifact = 'golden.gguf'\nagainst = './typo'", "checks.a: /"),
        ("[checks.a]\nartifact = 'golden.gguf'\nagainst = 'm'\ntext = 'no.txt'", "checks.a: no.txt: cannot be read"),
        ("[checks]\na = 5", "checks.a: has to be a table; write [checks.phone]"),
        ("[checks.a]\nartifact = 'g'", "checks.a: holds the artifact against nothing; add a limit"),
        ("[checks.a]\nartifact = 'g'\nmax_size = '1GB'\non = 'pi'", "checks.a: 'pi' names no host"),
        ("[checks.a]\nartifact = 'g.gguf'\nmax_size = '1GB'", "checks.a: g.gguf: no such file or directory"),
        ("[checks.a]\nartifact = 'golden.gguf'\nmax_latency = 9", "checks.a: --max-latency is for encoders"),
        ("[checks.a]\nartifact = 'golden.gguf'\nmin_sustained_speed = 9", "checks.a: --min-sustained-speed needs a"),
        ("[checks.a]\nartifact = 'golden.gguf'\nmax_size = '1GB'\nsustained = 'long'", "checks.a: 'long' is not a"),
        ("[checks.a]\nartifact = 'golden.gguf'\nmax_size = '1GB'\nturns = 1", "checks.a.turns: input should be"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_runs(written, text, said):
    written(text)
    Path("out.xml").write_text("<?xml: of an earlier run")
    done = run("check", "--junit", "out.xml")
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: packlight.toml: {said}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert Path("out.xml").read_text() == "<?xml: of an earlier run"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name an ARTIFACT, or write its limits into packlight.toml here"),
        (("--budget", "no.toml"), "no.toml: cannot be read (No such file or directory)"),
        (("golden.gguf", "--budget", "b.toml"), "either ARTIFACT or --budget: b.toml names its artifacts itself"),
        (("--budget", "b.toml", "--max-memory", "1GB"), "limits and options of the checks are keys of b.toml"),
        (("golden.gguf", "--max-memory", "1GB", "--junit", "no/x.xml"), "no/x.xml: cannot be written (No such file"),
        (("golden.gguf", "--max-memory", "1GB", "--junit", "."), ".: is there and no JUnit file of an earlier run"),
        (("golden.gguf", "--max-memory", "1GB", "--junit", "golden.gguf"), "golden.gguf: is there and no JUnit file"),
        (("golden.gguf", "--max-memory", "1GB", "--junit", "/dev/null"), "/dev/null: is there and no JUnit file of"),
        (("--budget", "b.toml", "--threads", "1"), "limits and options of the checks are keys of b.toml"),
    ],
)
def test_usage(written, arguments, said):
    done = run("check", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {said}")


def test_checks_that_hold_and_one_that_does_not(written, tmp_path):
    written(
        f"""
        [checks.small]
        artifact = "golden.gguf"
        max_size = "1MB"
        {QUICK}
        [checks.tight]
        artifact = "golden.gguf"
        max_memory = "8MB"
        {QUICK}
        """
    )
    done = run("check", "--junit", "out.xml", "--json")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == "failed"
    verdicts = {name: report["verdict"] for name, report in found["checks"].items()}
    assert verdicts == {"small": "met", "tight": "failed"}
    suites = ElementTree.parse("out.xml").getroot()
    counted = {one.get("name"): (one.get("tests"), one.get("failures")) for one in suites}
    assert counted == {"small": ("1", "0"), "tight": ("2", "2")}
    assert (suites.get("tests"), suites.get("failures")) == ("3", "2")
    failure = suites.find("testsuite[@name='tight']/testcase[@name='fits the cap']/failure")
    assert failure.get("message").startswith("fits the cap does not fit: needed ")
    shown = run("check", "--budget", tmp_path / "packlight.toml").stdout
    assert "check small: " in shown
    assert shown.splitlines()[-1] == "checks: 2, failed: tight"


def test_what_goes_wrong_in_one_check_leaves_the_others(written, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but no more")
    written(
        f"""
        [checks.bad]
        artifact = "bad.gguf"
        max_size = "1MB"
        {QUICK}
        [checks.astray]
        artifact = "golden.gguf"
        against = "no/such/model"
        {QUICK}
        [checks.good]
        artifact = "golden.gguf"
        max_size = "1MB"
        {QUICK}
        """
    )
    done = run("check", "--json")
    assert done.exit_code == 1
    checks = json.loads(done.stdout)["checks"]
    assert {name: one["failing"] for name, one in checks.items()} == {
        "bad": ["measure"],
        "astray": ["verify"],
        "good": [],
    }


def test_a_file_that_goes_meanwhile_leaves_the_others(written, tmp_path, monkeypatch):
    written(
        f"""
        [checks.first]
        artifact = "golden.gguf"
        max_size = "1MB"
        {QUICK}
        [checks.second]
        artifact = "golden.gguf"
        max_size = "1MB"
        {QUICK}
        """
    )
    monkeypatch.setattr("runtime.hosts.local.measure", lambda *_, **__: (tmp_path / "golden.gguf").unlink())
    (tmp_path / "out.xml").write_text("<?xml: of an earlier run")
    done = run("check", "--json", "--junit", "out.xml")
    assert done.exit_code == 1, done.output
    checks = json.loads(done.stdout)["checks"]
    assert {name: one["failing"] for name, one in checks.items()} == {"first": ["check"], "second": ["check"]}
    known = {one.get("name"): one.get("value") for one in ElementTree.parse("out.xml").iter("property")}
    assert known["measured on"] == "not measured"


def test_an_engine_that_fails_leaves_no_earlier_junit(written, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but no more")
    (tmp_path / "out.xml").write_text("<?xml: of an earlier run")
    assert run("check", "bad.gguf", "--max-memory", "500MB", "--junit", "out.xml").exit_code == 1
    assert not (tmp_path / "out.xml").exists()


def test_one_artifact_as_junit(written):
    done = run("check", "golden.gguf", "--max-memory", "500MB", "--trials", "1", "--context", "64", "--junit", "o.xml")
    assert done.exit_code == 0, done.output
    (suite,) = ElementTree.parse("o.xml").getroot()
    assert (suite.get("name"), suite.get("failures")) == ("golden.gguf", "0")
    assert [case.get("name") for case in suite.iter("testcase")] == ["fits the cap", "peak memory"]
    known = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert known["measured on"] == "local"
    assert known["artifact"] == "golden.gguf"


def test_what_xml_cannot_hold(tmp_path):
    lines = (at_most("size \x1b[31m", 2.0, 1.0, "a < b & \x00 \ud800 \U0001f600", "1"), at_most("free", 1.0, None, "1"))
    artifact = Artifact(tmp_path, "gguf", "m.gguf", "M", "q", 1, 4.0, 64, "x")
    report = Report(artifact, lines, Provenance("packlight check", "2026-11-29T00:00:00Z", "0.1", {"cpu": "C"}))
    (suite,) = ElementTree.fromstring(junit({"one": report}))
    assert suite.get("timestamp") == "2026-11-29T00:00:00"
    (case,) = suite.iter("testcase")
    assert case.get("name") == "size \ufffd[31m"
    assert case.find("failure").get("message") == "size \ufffd[31m a < b & \ufffd \ufffd \U0001f600 (budget ≤ 1)"
    assert "free" in suite.find("system-out").text
