"""A phone by adb: packlight's side, with a client and tools that are scripts; no phone was used.

The doubles of the tools print what the real ones print, as their sources and documentation show it; those of ONNX
Runtime and ExecuTorch are not available here. A real client and llama.cpp's own tools: tests/e2e/test_adb_host.py.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.adb import fake_client, hang_pushes, list_phones, unplug_at
from support.fake_adb_server import FakePhone
from support.processes import gone

from exporter.findings import Running
from exporter.progress import SilentReporter
from runtime.artifact import Artifact, record
from runtime.budget import Budget, run_lines
from runtime.errors import EngineError, HostError, TimedOut, UserError
from runtime.hosts import host_of
from runtime.hosts.adb import watched
from runtime.hosts.adb.binaries import elf_machine
from runtime.hosts.adb.client import COMMAND
from runtime.hosts.adb.engines.tensor_file import FLOAT, FLOAT16, INT64, tensor_file
from runtime.hosts.adb.host import AdbHost, PhoneBench
from runtime.hosts.adb.watched import Watched
from runtime.hosts.base import Job, Watcher
from runtime.measurement import Measurement, RunOptions, Trials

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = RunOptions(threads=2, context=64)
TRIALS = Trials(prompt_tokens=8, decode_tokens=4, count=2)
FOR_EVER = "echo waiting; exec sleep 600"
BENCH = """
case "$*" in *--help*) echo "-mmp, --mmap <0|1>"; exit;; esac
echo "$@" >>$0.called
sleep 0.3
echo '[{"build_commit": "abc", "build_number": 42, "backends": "CPU", "n_prompt": 8, "n_gen": 0,
 "samples_ns": [80000000, 160000000], "samples_ts": [100.0, 50.0]},
 {"n_prompt": 0, "n_gen": 4, "samples_ns": [1, 2], "samples_ts": [20.0, 10.0]}]'
"""
COMPLETION = """
echo "$@" >>$0.called
case "$*" in *--version*) echo "version: 7 (abc)" >&2; exit;; esac
sleep 0.3
echo "text that was generated"
echo "0.01 I common_perf_print:        load time =     123.45 ms" >&2
echo "0.01 I common_perf_print: prompt eval time =      40.00 ms /     9 tokens (    4.44 ms per token,   225.00 tokens per second)" >&2
echo "0.01 I common_perf_print:        eval time =     200.00 ms /     3 runs   (   66.67 ms per token,    15.00 tokens per second)" >&2
"""  # noqa: E501  as the tool prints it
PERF_TEST = """
for model; do :; done
cd ${model%/*}/test_data_set_0
fed=$(for one in *; do echo "$one=$(wc -c <$one)"; done | tr '\\n' ' ')
cd - >/dev/null
echo "$@ $fed" >>$0.called
sleep 0.3
echo "Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference requests: 2
Average inference time cost: 20 ms
Min Latency: 0.01 s
Max Latency: 0.04 s
P50 Latency: 0.02 s
P90 Latency: 0.04 s
P95 Latency: 0.04 s"
"""
RUNNER = """
echo "$@" >>$0.called
sleep 0.3
echo "I 00:00:00.010 executorch:executor_runner.cpp:364] Model executed successfully 2 time(s) in 64.000000 ms." >&2
"""
LLAMA = """
sleep 0.3
echo "$@" >>$0.called
echo 'PyTorchObserver {"prompt_tokens":1,"generated_tokens":1,"inference_start_ms":1}'
echo 'PyTorchObserver {"prompt_tokens":10,"generated_tokens":6,"model_load_start_ms":0,"model_load_end_ms":90,\
"inference_start_ms":100,"inference_end_ms":500,"prompt_eval_end_ms":200,"first_token_ms":210,\
"aggregate_sampling_time_ms":4,"SCALING_FACTOR_UNITS_PER_SECOND":1000}'
"""


@pytest.fixture
def phone(monkeypatch, tmp_path):
    """The only one that is attached."""
    monkeypatch.setenv(COMMAND, str(fake_client(tmp_path, SERIAL="device")))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return FakePhone("SERIAL", tmp_path / "SERIAL")


@pytest.fixture
def tools(tmp_path):
    """Writes the tools, scripts by name; the directory."""
    directory = tmp_path / "engine"

    def write(**scripts):
        directory.mkdir(exist_ok=True)
        for name, script in scripts.items():
            path = directory / name.replace("_bench", "-bench").replace("_completion", "-completion")
            path.write_text(f"#!/bin/sh\n{script}\n")
        return directory

    return write


def artifact_in(directory: Path, kind: str = "gguf", **contract) -> Artifact:
    directory.mkdir(exist_ok=True)
    entry = {"gguf": "tiny model.gguf", "onnx": "onnx/model.onnx", "executorch": "model.pte"}[kind]
    (directory / entry).parent.mkdir(exist_ok=True)
    (directory / entry).write_bytes(b"weights" * 1000)
    files = {entry: record(directory / entry)}
    return Artifact(directory, kind, entry, "tiny", "fp32", 1, 32.0, 128, "tiny", contract, files)


def job_of(artifact: Artifact, trials: Trials = TRIALS, options: RunOptions = OPTIONS) -> Job:
    return Job(artifact, options, trials, "as typed")


class Seen:
    def __init__(self):
        self.notes = []
        self.watcher = Watcher(self.notes.append)


def there(phone: FakePhone) -> Path:
    return phone.temporary / "packlight"


def called(phone: FakePhone, tool: str) -> list[str]:
    (path,) = there(phone).rglob(f"{tool}.called")
    return path.read_text().splitlines()


def test_llama_bench_and_llama_completion(phone, tools, tmp_path):
    engine = tools(llama_bench=BENCH, llama_completion=COMPLETION)
    seen = Seen()
    found = AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), seen.watcher)
    assert found.host["on"] == "adb:SERIAL"
    assert (found.host["model"], found.host["cpu"], found.host["machine"]) == ("Fake Phone", "F1", "x86_64")
    assert found.host["os"].startswith("Android 14, Linux ")
    assert found.host["memory_bytes"] > 0
    assert found.host["engine"] == "llama.cpp 42 (abc), CPU, llama-bench"
    assert found.prefill_tokens_per_s.values == (100.0, 50.0)
    assert found.decode_tokens_per_s.median == 15.0
    assert found.first_token_ms.values == (80.0, 160.0)
    assert found.peak_rss_bytes > 100_000
    assert found.resident.anonymous_bytes > 0
    assert (found.load_s, found.memory, found.second_turn_growth_bytes, found.cap) == (None, None, None, None)
    assert found.options.kv_type == "f16"
    assert "memory is that of llama-completion with 9 prompt tokens" in found.notes
    assert any("load time = 123.45 ms, with its warm-up and the file in memory" in note for note in found.notes)
    assert any(note.startswith("peak memory is VmHWM, read ") for note in found.notes)
    assert any("were not measured: no tool tells them" in note for note in found.notes)
    assert seen.notes[0].startswith("adb:SERIAL: Fake Phone, F1, Android 14")
    assert seen.notes[-1].endswith("in /data/local/tmp/packlight; --remote-clean removes it")
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found
    (asked,) = called(phone, "llama-bench")
    assert asked.endswith("tiny model.gguf -t 2 -b 512 -ub 512 -ngl 0 -p 8 -n 4 -r 2 -o json")
    (asked,) = called(phone, "llama-completion")
    assert "-c 64 -n 4 --temp 0 -p the the the the the the the the --ignore-eos -no-cnv" in asked
    assert list(there(phone).glob("run-*")) == []


def test_llama_bench_alone_fills_the_context(phone, tools, tmp_path):
    options = dataclasses.replace(OPTIONS, mmap=False, kv_type="q8_0")
    job = job_of(artifact_in(tmp_path / "out"), options=options)
    found = AdbHost(None, tools(llama_bench=BENCH) / "llama-bench").measure(job, Watcher())
    speed, memory = called(phone, "llama-bench")
    assert "-ctk q8_0 -ctv q8_0 -mmp 0 -p 8" in speed
    assert memory.endswith("-p 0 -n 0 -pg 8,4 -d 52 -r 1 -o json")
    assert "memory is that of llama-bench with the context filled to its end" in found.notes


def test_llama_completion_alone(phone, tools, tmp_path):
    found = AdbHost(None, tools(llama_completion=COMPLETION)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert found.host["engine"] == "llama.cpp 7 (abc), llama-completion"
    assert found.prefill_tokens_per_s.values == (225.0, 225.0)
    assert found.decode_tokens_per_s.values == (15.0, 15.0)
    assert (found.trials.prompt_tokens, found.trials.decode_tokens, found.trials.count) == (9, 3, 2)
    assert len(called(phone, "llama-completion")) == 3  # the version, and two trials


def test_a_prompt_of_too_many_tokens_becomes_shorter(phone, tools, tmp_path):
    """A tokenizer without the word makes more tokens of it."""
    words = 'echo "E main: prompt is too long (32 tokens, max 20)" >&2; exit 1'
    script = f'echo "$@" >>$0.called\ncase "$*" in *"the the the the the"*) {words};; esac\n{COMPLETION}'
    engine = tools(llama_bench=BENCH, llama_completion=script)
    AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert "-p the the the the --ignore-eos" in called(phone, "llama-completion")[-1]


def sizes(line: str) -> dict[str, int]:
    """Bytes of the inputs that the double has seen, by file."""
    return {name: int(size) for name, size in (word.split("=") for word in line.split() if ".pb=" in word)}


def fed(tokens: int, past: int) -> dict[str, int]:
    """What it must see of test_onnx_decoder's model."""
    files = [
        tensor_file("input_ids", INT64, (1, tokens), 1),
        tensor_file("attention_mask", INT64, (1, past + tokens), 1),
        tensor_file("num_logits_to_keep", INT64, (1,), 1),
        *(tensor_file(f"past_key_values.0.{one}", FLOAT, (1, 2, past, 8), 0) for one in ("key", "value")),
    ]
    return {f"input_{number}.pb": len(data) for number, data in enumerate(files)}


def test_onnx_decoder(phone, tools, tmp_path):
    root = tmp_path / "out"
    inputs = ["input_ids", "attention_mask", "num_logits_to_keep", "past_key_values.0.key", "past_key_values.0.value"]
    artifact = artifact_in(root, "onnx", inputs=inputs)
    (root / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}')
    large = "x=$(head -c 20000000 /dev/zero | tr '\\0' x)"  # memory of a full context alone
    when = "for model; do :; done; [ $(cat ${model%/*}/test_data_set_0/input_3.pb | wc -c) -lt 4000 ]"
    script = f"{when} || {large}\n{PERF_TEST}"
    found = AdbHost(None, tools(onnxruntime_perf_test=script)).measure(job_of(artifact), Watcher())
    assert found.peak_rss_bytes > 20_000_000
    assert found.prefill_tokens_per_s.median == pytest.approx(8 / 0.02)
    assert found.decode_tokens_per_s.median == pytest.approx(50.0)
    assert found.decode_tokens_per_s.p95 == pytest.approx(25.0)  # the slow side
    assert found.first_token_ms.median == pytest.approx(20.0)
    assert found.first_token_ms.spread == pytest.approx(1.5)
    assert not found.of_encoder
    assert (found.trials.prompt_tokens, found.trials.decode_tokens) == (8, 1)
    assert any("a step behind 63 tokens, which fill the context" in note for note in found.notes)
    first, second, full = called(phone, "onnxruntime_perf_test")
    assert "-e cpu -m times -r 2 -x 2 -y 1 -s ./" in first
    assert [sizes(line) for line in (first, second, full)] == [fed(8, 0), fed(1, 8), fed(1, 63)]
    assert list(there(phone).rglob("test_data_set_0")) == []


def test_onnx_encoder(phone, tools, tmp_path):
    artifact = artifact_in(tmp_path / "out", "onnx", inputs=["input_ids", "attention_mask"], task="feature-extraction")
    found = AdbHost(None, tools(onnxruntime_perf_test=PERF_TEST)).measure(job_of(artifact), Watcher())
    assert found.of_encoder
    assert found.latency_ms.median == pytest.approx(20.0)
    assert found.decode_tokens_per_s is None
    assert found.trials.decode_tokens == 0
    short, long = called(phone, "onnxruntime_perf_test")
    assert [sizes(line)["input_0.pb"] for line in (short, long)] == [
        len(tensor_file("input_ids", INT64, (1, tokens), 1)) for tokens in (8, 64)
    ]


@pytest.mark.parametrize(
    ("contract", "config", "said"),
    [
        ({}, "{}", "its manifest names no inputs"),
        ({"inputs": ["input_ids", "past_key_values.0.key"]}, "{}", "does not tell the heads of the KV cache"),
        ({"inputs": ["pixels"], "task": "feature-extraction"}, "{}", "does not know what to give its input 'pixels'"),
    ],
)
def test_onnx_graphs_that_cannot_be_fed(phone, tools, tmp_path, contract, config, said):
    artifact = artifact_in(tmp_path / "out", "onnx", **contract)
    (artifact.root / "config.json").write_text(config)
    with pytest.raises(HostError, match=said):
        AdbHost(None, tools(onnxruntime_perf_test=PERF_TEST)).measure(job_of(artifact), Watcher())


def test_executor_runner(phone, tools, tmp_path):
    engine = tools(executor_runner=RUNNER)
    found = AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out", "executorch", piece=64)), Watcher())
    assert found.prefill_tokens_per_s.median == pytest.approx(64 / 0.032)
    assert (found.decode_tokens_per_s, found.first_token_ms) == (None, None)
    assert (found.trials.prompt_tokens, found.trials.decode_tokens) == (64, 0)
    assert (found.prefill_tokens_per_s.values, found.prefill_tokens_per_s.spread) == ((), 0.0)  # a mean
    assert any("decodes nothing" in note for note in found.notes)
    assert called(phone, "executor_runner")[0].endswith("--num_executions=2 --cpu_threads=2")
    # A limit on what was not measured is not met.
    lines = {line.name: line for line in run_lines(found, Budget(min_decode_tokens_per_s=1.0, max_load_s=9.0))}
    assert (lines["decode"].ok, lines["decode"].text) == (False, "none was measured")
    assert lines["load"].ok is False


def test_executor_runner_and_an_encoder(phone, tools, tmp_path):
    artifact = artifact_in(tmp_path / "out", "executorch", task="text-classification")
    found = AdbHost(None, tools(executor_runner=RUNNER, llama_main="exit 9")).measure(job_of(artifact), Watcher())
    assert found.latency_ms.median == pytest.approx(32.0)
    assert found.trials.prompt_tokens == artifact.context_length
    with pytest.raises(HostError, match="for an encoder --engine has to have executor_runner"):
        AdbHost(None, tools() / "llama_main").measure(job_of(artifact), Watcher())


def test_llama_main(phone, tools, tmp_path):
    engine = tools(executor_runner=RUNNER, llama_main=LLAMA)
    found = AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out", "executorch", piece=64)), Watcher())
    assert found.prefill_tokens_per_s.values == (100.0, 100.0)
    assert found.decode_tokens_per_s.values == (20.0, 20.0)
    assert found.first_token_ms.median == 110.0
    assert (found.trials.prompt_tokens, found.trials.decode_tokens) == (10, 6)
    (asked, _) = called(phone, "llama_main")
    assert "--seq_len=12" in asked
    assert "warmup" not in asked  # it would generate as much again
    assert list(there(phone).rglob("executor_runner")) == []  # what is not run is not sent


def test_sent_once_and_removed_where_that_is_asked(phone, tools, tmp_path):
    engine, job = tools(llama_bench=BENCH), job_of(artifact_in(tmp_path / "out"))
    host, seen = AdbHost(None, engine), Seen()
    host.measure(job, Watcher())
    host.measure(job, seen.watcher)
    assert not any(note.startswith("sending") for note in seen.notes)
    (there(phone) / next(there(phone).glob("engine-*")) / "llama-bench").write_text("#!/bin/sh\nexit 5\n")
    host.measure(job, seen.watcher)  # other bytes are sent again
    assert [note for note in seen.notes if note.startswith("sending")] == ["sending llama-bench, 0.0 MB"]
    dataclasses.replace(host, keep=False).measure(job, Watcher())
    assert list(phone.temporary.iterdir()) == []


def test_a_phone_without_sha256sum_compares_sizes(phone, tools, tmp_path):
    phone.lacks("sha256sum")
    engine, job = tools(llama_bench=BENCH), job_of(artifact_in(tmp_path / "out"))
    seen = Seen()
    AdbHost(None, engine).measure(job, Watcher())
    AdbHost(None, engine).measure(job, seen.watcher)
    assert not any(note.startswith("sending") for note in seen.notes)


def test_a_sha256sum_that_fails_is_not_an_absent_one(phone, tools, tmp_path):
    phone.command("sha256sum", "exit 1")
    with pytest.raises(HostError, match=r"llama-bench: came to adb:SERIAL with another size or SHA-256"):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_tools_of_before_are_removed(phone, tools, tmp_path):
    job = job_of(artifact_in(tmp_path / "out"))
    host = AdbHost(None, tools(llama_bench=BENCH))
    host.measure(job, Watcher())
    (before,) = there(phone).glob("engine-*")
    tools(llama_bench=f"# another build{BENCH}")
    host.measure(job, Watcher())
    (now,) = there(phone).glob("engine-*")
    assert now != before
    assert list(there(phone).rglob("*.gguf"))


@pytest.mark.parametrize(
    ("word", "while_"),
    [
        ("mkdir -p", "while /data/local/tmp/packlight/engine-"),
        ("wc -c", "while llama-bench was looked at"),
        ("mv -f", ""),
        ("df -k", ""),
        ("getprop", ""),
    ],
)
def test_unplugged_in_a_short_command(phone, tools, tmp_path, word, while_):
    """Not damaged storage, nor a directory without permission."""
    unplug_at(tmp_path, word)
    with pytest.raises(EngineError, match=rf"adb:SERIAL: the connection broke.*{while_}.*not attached any more"):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_a_file_that_never_comes(phone, tools, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.hosts.adb.client.PUSH_SECONDS", 1.0)
    hang_pushes(tmp_path)
    with pytest.raises(HostError, match=r"adb:SERIAL: llama-bench was not sent within 1 s; plug the phone in again"):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_a_script_that_never_comes_is_over_in_time(phone, tools, tmp_path):
    trials = dataclasses.replace(TRIALS, timeout_s=1.0)
    host, job = AdbHost(None, tools(llama_bench=BENCH)), job_of(artifact_in(tmp_path / "out"), trials)
    dataclasses.replace(host).measure(job_of(job.artifact), Watcher())
    hang_pushes(tmp_path)
    with pytest.raises(TimedOut, match="took longer than 1 s"):
        host.measure(job, Watcher())


def test_a_shell_that_ends_early_is_not_the_cable(phone, tools, tmp_path):
    """Its engine runs on, and is stopped."""
    phone.command("sleep", "kill -9 $PPID")  # the loop's, between two readings
    engine = tools(llama_bench="while :; do /bin/sleep 1; done")
    said = r"the phone's shell ended early while measuring speed by llama-bench \(exit status 247\): it said nothing"
    with pytest.raises(EngineError, match=said):
        AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert gone(phone.mark)
    assert list(there(phone).glob("run-*")) == []


def test_a_directory_that_cannot_be_written_in_the_middle(phone, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "SCRIPT", watched.SCRIPT.replace("true >$id.out", "true >no/$id.out"))
    with pytest.raises(EngineError, match=r"ended early while .* \(exit status 9\): .*no/run-"):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_a_signal_before_the_engines_number_is_known(phone, tools, tmp_path, monkeypatch):
    script = watched.SCRIPT.replace("\np=$!\n", "\nkill -HUP $$\np=$!\n")
    assert script != watched.SCRIPT
    monkeypatch.setattr(watched, "SCRIPT", script)
    monkeypatch.setattr(PhoneBench, "stop", lambda _bench: None)  # the cable is pulled: nobody else stops it
    with pytest.raises(EngineError, match="ended early"):
        AdbHost(None, tools(llama_bench=FOR_EVER)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert gone(phone.mark)


def test_bytes_that_came_differently_have_no_name(phone, tools, tmp_path):
    phone.command("sha256sum", f"echo {'0' * 64} file")
    with pytest.raises(HostError, match=r"llama-bench: came to adb:SERIAL with another size or SHA-256"):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert [path for path in there(phone).rglob("*") if path.is_file()] == []


def test_another_directory(phone, tools, tmp_path):
    host = AdbHost("SERIAL", tools(llama_bench=BENCH), "/data/local/tmp/a b/")
    host.measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert list((phone.temporary / "a b").rglob("*.gguf"))
    assert not there(phone).exists()


def test_low_storage(phone, tools, tmp_path):
    phone.command("df", 'echo "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/dm-5 100 90 10 90% /data"')
    said = (
        r"adb:SERIAL: /data/local/tmp/packlight: 0.0 MB free, 16.8 MB needed; free some on the phone, or name another"
    )
    with pytest.raises(HostError, match=said):
        AdbHost(None, tools(llama_bench=BENCH)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


@pytest.mark.parametrize(
    ("states", "serial", "said"),
    [
        ({}, None, "^adb: no phone is attached; plug it in and allow USB debugging"),
        ({}, "A", "^adb:A: no phone is attached"),
        ({"A": "device", "B": "offline"}, None, r"several phones are attached: A \(device\), B \(offline\); name one"),
        ({"A": "device"}, "B", r"^adb:B: no such phone; attached: A \(device\)"),
        ({"A": "unauthorized"}, None, "^adb:A: cannot be used, adb says 'unauthorized'; unlock the phone and accept"),
        ({"A": "offline"}, "A", "^adb:A: cannot be used, adb says 'offline'; plug it in again, or: adb reconnect"),
        ({"A": "rescue"}, None, "^adb:A: cannot be used, adb says 'rescue'; see: adb devices"),
        ({"A": "no permissions (udev; see [http://x])"}, None, r"adb says 'no permissions \(udev; see \[http://x\]\)'"),
    ],
)
def test_phones_that_cannot_be_used(phone, tools, tmp_path, states, serial, said):
    list_phones(tmp_path, **states)
    with pytest.raises(HostError, match=said):
        AdbHost(serial, tools(llama_bench=BENCH)).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_the_serial_of_the_environment(phone, tools, tmp_path, monkeypatch):
    list_phones(tmp_path, OTHER="device", SERIAL="device")
    monkeypatch.setenv("ANDROID_SERIAL", "SERIAL")
    seen = Seen()
    AdbHost(None, tools(llama_bench=BENCH)).refuse("gguf", RunOptions(), Trials(), seen.watcher)
    assert seen.notes[0].startswith("adb:SERIAL: ")


def test_no_client(monkeypatch, tools):
    monkeypatch.setenv(COMMAND, "/no/such/adb -P 1")
    with pytest.raises(HostError, match=r"^/no/such/adb: No such file or directory; --on adb needs Android's adb"):
        AdbHost(None, tools(llama_bench=BENCH)).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_engines_that_are_none(phone, tools, tmp_path):
    for path, said in (
        (None, "--on adb needs --engine DIR: a directory with llama.cpp's llama-bench"),
        (tmp_path / "nowhere", "nowhere: no such file or directory"),
        (tmp_path, "has none of llama-bench, llama-completion, llama-cli"),
        (tmp_path / "adb", "adb: is none of the tools that packlight runs: llama-bench"),
    ):
        with pytest.raises(HostError, match=said):
            AdbHost(None, path).refuse("gguf", RunOptions(), Trials(), Watcher())
    with pytest.raises(HostError, match="no tool measures 'ptl' on a phone; known: executorch, gguf, onnx, ort"):
        AdbHost(None, tools(llama_bench=BENCH)).refuse("ptl", RunOptions(), Trials(), Watcher())


def test_a_tool_for_another_processor(phone, tools, tmp_path):
    engine = tools(llama_bench=BENCH)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (183).to_bytes(2, "little")
    (engine / "llama-bench").write_bytes(header)
    assert elf_machine(engine / "llama-bench") == "arm64-v8a"
    with pytest.raises(HostError, match=r"llama-bench: is built for arm64-v8a, adb:SERIAL runs x86_64, x86; build it"):
        AdbHost(None, engine).refuse("gguf", RunOptions(), Trials(), Watcher())


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("exit 126", HostError, "llama-bench cannot be run there"),
        ("echo CANNOT LINK EXECUTABLE: library libllama.so not found >&2; exit 1", HostError,
         r"llama-bench does not start \(CANNOT LINK EXECUTABLE: library libllama.so not found\); put the .so files"),
        ("echo error: failed to load model >&2; exit 1", EngineError,
         r"llama-bench failed \(exit status 1\) while measuring speed by llama-bench: error: failed to load model"),
        ("kill -9 $$", EngineError, "llama-bench was ended by SIGKILL while measuring speed .*perhaps Android ran out"),
        ("sleep 0.2; echo nothing", EngineError, "llama-bench: gave no JSON that can be read"),
        ("sleep 0.2; echo '[]'", EngineError, "its JSON lacks what was measured"),
    ],
)  # fmt: skip
def test_tools_that_fail(phone, tools, tmp_path, script, error, said):
    with pytest.raises(error, match=said):
        AdbHost(None, tools(llama_bench=script)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert list(there(phone).glob("run-*")) == []


def test_a_tool_that_takes_too_long_is_ended(phone, tools, tmp_path):
    trials = dataclasses.replace(TRIALS, timeout_s=1.0)
    with pytest.raises(TimedOut, match="took longer than 1 s, while measuring speed by llama-bench"):
        AdbHost(None, tools(llama_bench=FOR_EVER)).measure(job_of(artifact_in(tmp_path / "out"), trials), Watcher())
    assert gone(phone.mark)
    assert list(there(phone).glob("run-*")) == []


def test_a_peak_is_compared_with_the_cap(phone, tools, tmp_path):
    host, job = AdbHost(None, tools(llama_bench=BENCH)), job_of(artifact_in(tmp_path / "out"))
    assert not host.caps
    large = host.check(job, 10**9, Watcher())
    assert (large.fits, large.method) == (True, "compared")
    assert large.needed_bytes == large.measurement.peak_rss_bytes
    assert "memory was not capped" in large.text
    small = host.check(job, large.needed_bytes // 2, Watcher())
    assert not small.fits
    assert small.text.startswith("does not fit: peak ")


def test_a_prompt_that_has_no_room_is_cut_as_here(phone, tools, tmp_path):
    trials = dataclasses.replace(TRIALS, prompt_tokens=61)
    host = AdbHost(None, tools(llama_bench=BENCH))
    found = host.measure(job_of(artifact_in(tmp_path / "out"), trials), Watcher())
    assert (found.trials.prompt_tokens, found.trials.decode_tokens) == (60, 4)
    assert found.notes[0] == "prompt and decode were cut from 61 + 4 tokens to 60 + 4 to fit the context of 64"
    assert "-p 60 -n 4" in called(phone, "llama-bench")[0]


def test_a_context_and_a_text_that_the_artifact_does_not_have(phone, tools, tmp_path):
    artifact = artifact_in(tmp_path / "out", "onnx", inputs=["input_ids", "attention_mask"], task="feature-extraction")
    trials, options = dataclasses.replace(TRIALS, prompt_tokens=200), dataclasses.replace(OPTIONS, context=2048)
    engine = tools(onnxruntime_perf_test=PERF_TEST)
    found = AdbHost(None, engine).measure(job_of(artifact, trials, options), Watcher())
    assert (found.options.context, found.trials.prompt_tokens) == (128, 128)
    assert found.notes[0] == "the text was cut from 200 to 128 tokens, the most that the model takes"


def test_no_mmap_is_refused_before_the_export(phone, tools):
    options = dataclasses.replace(OPTIONS, mmap=False)
    with pytest.raises(UserError, match=r"--no-mmap: on adb only llama\.cpp's tools have it; leave it out"):
        Running(options, TRIALS, AdbHost(None, tools(onnxruntime_perf_test=PERF_TEST))).refuse("onnx", SilentReporter())
    Running(options, TRIALS, AdbHost(None, tools(llama_bench=BENCH))).refuse("gguf", SilentReporter())


def test_a_completion_that_lacks_a_library(phone, tools, tmp_path):
    engine = tools(llama_completion="echo CANNOT LINK EXECUTABLE: library libllama.so not found >&2; exit 1")
    with pytest.raises(HostError, match=r"llama-completion does not start .* put the .so files"):
        AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_a_prompt_too_short_for_the_clock_meets_no_limit(phone, tools, tmp_path):
    script = COMPLETION.replace("40.00 ms", "0.00 ms")
    found = AdbHost(None, tools(llama_completion=script)).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert (found.first_token_ms, found.prefill_tokens_per_s) == (None, None)
    lines = {line.name: line.ok for line in run_lines(found, Budget(max_first_token_ms=9.0))}
    assert lines["first token"] is False


def test_llama_cli_is_not_run_beside_llama_bench(phone, tools, tmp_path):
    engine = tools(llama_bench=BENCH, **{"llama-cli": "exit 1"})
    found = AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), Watcher())
    assert "memory is that of llama-bench with the context filled to its end" in found.notes
    assert list(there(phone).rglob("llama-cli")) == []


def test_a_directory_where_nothing_may_be_started(phone, tools, tmp_path):
    """As on storage that is mounted noexec: the processor is right."""
    engine = tools(llama_bench=BENCH)
    (engine / "llama-bench").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (62).to_bytes(2, "little"))
    with pytest.raises(HostError, match=r"llama-bench cannot be run there .* name a directory with --remote-dir where"):
        AdbHost(None, engine).measure(job_of(artifact_in(tmp_path / "out")), Watcher())


def test_hosts_by_name(tmp_path):
    assert host_of("adb", engine=tmp_path) == AdbHost(None, tmp_path)
    found = host_of("adb:192.168.1.5:5555", engine=tmp_path, directory="/sdcard/x", keep=False)
    assert found == AdbHost("192.168.1.5:5555", tmp_path, "/sdcard/x", keep=False)
    assert found.name == "adb:192.168.1.5:5555"
    for where, more, said in (
        ("adb:", {}, "is no phone: write adb:SERIAL"),
        ("adb:-s", {}, "is no phone"),
        ("adb", {"python": "python3"}, "a phone has no Python"),
        ("adb", {"directory": "here"}, "name a whole path on the phone"),
        ("local", {"engine": tmp_path}, "--engine is for --on adb"),
        ("ssh:board", {"engine": tmp_path}, "--engine is for --on adb"),
    ):
        with pytest.raises(UserError, match=said):
            host_of(where, **more)


def test_what_the_script_printed():
    text = (
        "noise\r\npacklight: ended\r\nstatus=0 polls=3 peak=2048 anon=1024 file=512 shmem=0 faults=\r\n"
        "packlight: stdout\r\nsaid\r\n\r\npacklight: stderr\r\ncomplained\r\n\r\npacklight: over\r\n"
    )
    found = Watched.parse(text)
    assert (found.status, found.polls, found.peak_bytes, found.major_page_faults) == (0, 3, 2048 * 1024, None)
    assert Watched.parse(text.replace("faults=", "faults=7")).major_page_faults == 7
    assert (found.kinds.anonymous_bytes, found.kinds.file_bytes) == (1024 * 1024, 512 * 1024)
    assert (found.out.strip(), found.complaint) == ("said", "complained")
    assert Watched.parse(text.replace("packlight: over", "")) is None
    none = Watched.parse(text.replace("peak=2048 anon=1024", "peak= anon="))
    assert (none.peak_bytes, none.kinds) == (None, None)


@pytest.mark.parametrize(
    ("kind", "shape", "value"), [(INT64, (1, 300), 7), (FLOAT, (1, 2, 0, 4), 0), (FLOAT16, (1, 2, 3, 4), 1)]
)
def test_tensors_as_onnx_reads_them(kind, shape, value):
    onnx = pytest.importorskip("onnx")
    read = onnx.TensorProto.FromString(tensor_file("some name", kind, shape, value))
    array = onnx.numpy_helper.to_array(read)
    assert (read.name, read.data_type, array.shape) == ("some name", kind, shape)
    assert (array == value).all()


@pytest.mark.parametrize("more", [{"turns": 3}, {"fill_context": True}, {"sustained_s": 60.0}])
def test_what_only_the_harness_does_is_refused(more):
    trials = dataclasses.replace(TRIALS, **more)
    with pytest.raises(UserError, match=r"--on adb:X runs the engine's own tools: leave out --turns"):
        AdbHost("X").measure(Job(SimpleNamespace(format="gguf"), OPTIONS, trials), Watcher())
    with pytest.raises(UserError, match=r"--on adb:X runs the engine's own tools: leave out --turns"):
        Running(OPTIONS, trials, AdbHost("X")).refuse("gguf", SilentReporter())
