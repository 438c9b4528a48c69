from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runtime.measurement import Trials
from runtime.worker import fit_to_context, split_memory, token_ids

ROOT = Path(__file__).resolve().parents[3]


def test_token_ids_are_fixed_and_away_from_the_ends():
    assert token_ids(1000, 3) == [100 + 48271 % 800, 100 + 48271**2 % 2147483647 % 800, token_ids(1000, 3)[2]]
    assert all(100 <= token < 900 for token in token_ids(1000, 500))
    assert len(set(token_ids(49152, 500))) > 400


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 4096))
def test_prompt_and_decode_fit_the_context(prompt, decode, context):
    n_prompt, n_decode, note = fit_to_context(Trials(prompt, decode), context)
    assert n_prompt >= 1 <= n_decode
    assert n_prompt + n_decode <= context
    assert (note is None) == (prompt + decode <= context)


def test_split_counts_what_is_resident_and_adds_up():
    engine = {"weights": 140, "weights_mapped": 100, "kv_cache": 45, "compute": 107}
    split = split_memory(engine, mapped=90, grown=20, peak=240)
    assert split == {"weights_bytes": 130, "kv_cache_bytes": 45, "compute_bytes": 20, "other_bytes": 45}
    assert sum(split_memory(engine, mapped=None, grown=None, peak=50).values()) == 50


def test_the_worker_needs_neither_torch_nor_transformers_nor_numpy():
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from runtime import worker\nraise SystemExit(worker.main())"
    )
    request = {
        "artifact": {"root": str(ROOT / "tests/golden"), "format": "gguf", "entry": "golden-q4_k_m.gguf"},
        "options": {"threads": 1, "context": 64}, "trials": {"prompt_tokens": 8, "decode_tokens": 2, "count": 1},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True, cwd=ROOT
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["phase"] for answer in answers if "phase" in answer] == [
        "starting", "loading", "warm-up", "trial 1 of 1", "first turn", "second turn", "done",
    ], done.stderr  # fmt: skip
    assert answers[-1]["result"]["peak_rss_bytes"] > 5 << 20
