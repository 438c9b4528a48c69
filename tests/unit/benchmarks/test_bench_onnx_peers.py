"""What benchmarks.onnx_peers makes of its figures: quotients, limits, tables."""

from __future__ import annotations

import pytest

from benchmarks import onnx_judge, onnx_peers, onnx_runs, onnx_tables


def _engine(prefill: float, decode: float, peak: int) -> dict:
    return {
        "prefill": prefill,
        "decode": decode,
        "peak_bytes": peak,
        "runs": [{"prefill": [prefill], "decode": [decode]}],
    }


def _decoder(name: str, wall_s: float, n_bytes: int, mean_kl: float, prefill: float) -> dict:
    engines = {"plain": _engine(prefill, 50.0, 300_000_000), "genai": _engine(prefill, 60.0, 310_000_000)}
    if name.startswith("packlight"):
        engines["harness"] = _engine(prefill, 55.0, 200_000_000)
    build = {"wall_s": wall_s, "peak_rss_bytes": 10**9, "model_bytes": n_bytes}
    drift = {"mean_kl": mean_kl, "perplexity": 12.0, "same_top1": 0.8}
    return {"name": name, "build": build, "drift": drift, "drift_second": {"mean_kl": mean_kl / 2}, "engines": engines}


def _decoders(**ours: float) -> list[dict]:
    figures = {"wall_s": 2.0, "n_bytes": 80_000_000, "mean_kl": 0.2, "prefill": 600.0, **ours}
    theirs = [_decoder(name, 8.0, 100_000_000, 0.4, 500.0) for name, _ in onnx_judge.PAIRS]
    return theirs + [_decoder(name, **figures) for _, name in onnx_judge.PAIRS]


def test_quotients_are_ours_over_theirs():
    found = {one.what: one for one in onnx_judge.pairs({"decoder": _decoders()})}
    assert found["build"].value == 0.25
    assert found["graph and weights"].value == 0.8
    assert found["mean KL"].value == 0.5
    assert found["prefill, onnxruntime"].value == 1.2
    assert found["peak / file, packlight's session"].value == 2.5
    assert onnx_judge.failures({"decoder": _decoders()}) == []


@pytest.mark.parametrize(
    ("ours", "lines"),
    [
        ({"wall_s": 25.0}, ["build: 3.125, limit 3.0 at most"]),
        ({"mean_kl": 0.33}, [f"mean KL{text}: 0.825, limit 0.8 at most" for text in ("", ", second text")]),
        ({"n_bytes": 100_000_001}, ["graph and weights: 1.000, limit 1.0 at most"]),
        ({"n_bytes": 79_000_000}, ["peak / file, packlight's session: 2.532, limit 2.5 at most"]),
        (
            {"prefill": 490.0},
            [f"prefill, {e}: 0.980, limit 1.0 at least" for e in ("onnxruntime", "onnxruntime-genai")],
        ),
    ],
)
def test_what_does_not_hold_is_named(ours, lines):
    found = [line for line in onnx_judge.failures({"decoder": _decoders(**ours)}) if "packlight int4-mixed" not in line]
    assert [line.partition(": ")[2] for line in found] == lines


def test_ratio_of_speeds_is_the_median_of_the_runs_own():
    # Medians over the runs, 60 and 300, would say 5; the host was slow in one process of the second pair.
    theirs = {"name": "a", "latency": {"ms": 60.0, "runs": [{"ms": [50.0]}, {"ms": [60.0]}, {"ms": [200.0, 400.0]}]}}
    ours = {"name": "b", "latency": {"ms": 300.0, "runs": [{"ms": [40.0]}, {"ms": [300.0]}, {"ms": [300.0, 330.0]}]}}
    one = onnx_judge._paired("latency", "ms", (theirs, ours), ("latency", "ms"), (1.0, False))
    assert one.value == pytest.approx(315 / 300)  # of 0.8, 5 and 1.05
    assert (one.theirs, one.ours) == (60.0, 300.0)


def test_what_could_not_be_measured_does_not_hold():
    rows = _decoders()
    rows[2]["engines"]["genai"] = {"error": "it said no"}
    rows[2]["drift"] = {"error": "it said no"}
    assert onnx_judge.failures({"decoder": rows}) == [
        f"packlight int4 / GenAI int4: {what}: not measured, limit {limit}"
        for what, limit in (
            ("mean KL", "0.8 at most"),
            ("prefill, onnxruntime-genai", "1.0 at least"),
            ("decode, onnxruntime-genai", "1.0 at least"),
        )
    ]
    table = onnx_tables.table({"decoder": rows})
    assert "| mean KL | 0.4000 | failed | **✗ failed (≤ 0.8)** |" in table
    assert (
        "| packlight int4 | 2.0 | 1000 | 80.0 | failed (0.1000) | failed | failed | 600 / 50 | failed | 600 / 55 |"
        in table
    )


def test_decoder_table_has_the_peak_beside_its_share_of_the_file():
    table = onnx_tables.table({"decoder": _decoders()})
    assert "| build | 8.00 s | 2.00 s | 0.25 (≤ 3) |" in table
    assert "| graph and weights | 100.0 MB | 80.0 MB | 0.80 (≤ 1) |" in table
    assert (
        "| GenAI int4 | 8.0 | 1000 | 100.0 | 0.4000 (0.2000) | 12.00 | 0.800 | 500 / 50 | 500 / 60 |  | 300 (3.0x) |"
        in table
    )


def _encoders(least: float, ms: float) -> list[dict]:
    def row(name: str, cosine: float, latency: float) -> dict:
        build = {"wall_s": 5.0, "peak_rss_bytes": 10**9, "model_bytes": 23_000_000}
        figures = {"ms": latency, "peak_bytes": 10**8, "runs": [{"ms": [latency]}]}
        return {"name": name, "build": build, "cosine": {"min": cosine, "mean": 1.0}, "latency": figures}

    return [*(row(name, 0.95, 6.0) for name in onnx_judge.ENCODER_PEERS), row(onnx_judge.ENCODER, least, ms)]


def test_encoders_are_judged_by_the_least_cosine_and_against_every_peer():
    assert onnx_judge.failures({"encoder": _encoders(0.991, 6.0)}) == []
    assert len(onnx_judge.failures({"encoder": _encoders(0.989, 6.6)})) == 1 + len(onnx_judge.ENCODER_PEERS)
    table = onnx_tables.table({"encoder": _encoders(0.989, 6.6)})
    assert "| packlight dynamic-int8 | least cosine |  | 0.9890 | **✗ 0.9890 (≥ 0.99)** |" in table
    assert "| latency | 6.00 ms | 6.60 ms | **✗ 1.10 (≤ 1)** |" in table


def test_greedy_tokens_have_to_be_equal_on_every_prompt():
    prompts = [{"prompt": "a", "equal_tokens": 64}, {"prompt": "b", "equal_tokens": 63}]
    content = {"greedy": prompts, "tokens": 64}
    (one,) = onnx_judge.pairs(content)
    assert (one.ours, one.theirs, one.value, one.holds) == (1, 2, 0.5, False)
    assert "Greedy tokens part after 63 on “b”." in onnx_tables.table(content)
    assert onnx_judge.failures({**content, "greedy": {"error": "no"}})[0].endswith("not measured, limit 1 at least")


def test_sizes_count_graph_and_weights_apart_from_the_rest(tmp_path):
    (tmp_path / "onnx").mkdir()
    for name, n_bytes in (("onnx/model_q4.onnx", 300_000), ("onnx/model_q4.onnx_data", 2_000_000), ("t.json", 500_000)):
        (tmp_path / name).write_bytes(bytes(n_bytes))
    found = onnx_judge.sizes_of(tmp_path)
    assert found == {"file": "model_q4.onnx", "model_bytes": 2_300_000, "directory_bytes": 2_800_000}
    assert onnx_peers.model_bytes(tmp_path) == 2_300_000
    table = onnx_tables.sizes({"sizes": {"A": {"int4": found}, "B": {"fp32": {"error": "no"}}}})
    assert "| `int4` | `model_q4.onnx` | 2.3 (2.8) |  |" in table
    assert "| `fp32` |  |  | failed |" in table


def test_a_failed_step_is_told_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_peers, "WORK", tmp_path)
    answers = iter([RuntimeError("first\nlast"), {"x": 1}])

    def step():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert onnx_peers.kept("a", step) == {"error": "last"}
    assert onnx_peers.kept("a", step) == {"x": 1}
    assert onnx_peers.kept("a", step) == {"x": 1}  # not a third time
    assert "a: first" in capsys.readouterr().err


def test_two_runs_at_once_are_refused(tmp_path):
    first = onnx_peers.alone(tmp_path / "lock")
    with pytest.raises(SystemExit, match="another run"):
        onnx_peers.alone(tmp_path / "lock")
    first.close()
    onnx_peers.alone(tmp_path / "lock").close()


def test_medians_over_runs_and_their_trials():
    runs = [{"ms": [1.0, 9.0, 2.0], "load_s": 3.0}, {"ms": [4.0], "load_s": 5.0}]
    assert onnx_runs.median_of(runs) == {"ms": 3.0, "load_s": 4.0}
    assert onnx_peers.summary([{"error": "no"}, *runs]) == {"error": "no"}


def test_one_graph_a_directory(tmp_path):
    with pytest.raises(RuntimeError, match="0 graphs"):
        onnx_runs.model_file(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    assert onnx_runs.model_file(tmp_path).name == "model.onnx"
