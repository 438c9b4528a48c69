from __future__ import annotations

import ctypes
import subprocess
import sys
import types

import pytest

from runtime.errors import UserError
from runtime.sessions import llamacpp_library
from runtime.sessions.llamacpp_library import Log, buffer_bytes, check_layout, check_version

# Captured from llama.cpp 0.5.0-dev, SmolLM2-135M Q4_1, context 2048.
LINES = [
    "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
    "llama_context:        CPU  output buffer size =     0.19 MiB",
    "llama_kv_cache:        CPU KV buffer size =    45.00 MiB",
    "sched_reserve:        CPU compute buffer size =   102.51 MiB",
]
MIB = 2**20


def test_buffers_by_kind():
    assert buffer_bytes(LINES) == {
        "weights": round(92.10 * MIB), "weights_mapped": round(92.10 * MIB), "kv_cache": 45 * MIB,
        "compute": round(102.51 * MIB) + round(0.19 * MIB),
    }  # fmt: skip


def test_repacked_weights_and_second_caches_add_up():
    more = [
        "load_tensors:   CPU_REPACK model buffer size =    40.00 MiB",
        "llama_kv_cache:        CPU KV buffer size =     5.00 MiB",
        "llama_memory_recurrent:        CPU RS buffer size =     1.00 MiB",
    ]
    sizes = buffer_bytes(LINES + more)
    assert sizes["weights"] - sizes["weights_mapped"] == 40 * MIB
    assert sizes["kv_cache"] == 51 * MIB


def test_a_buffer_reserved_again_replaces_the_first():
    again = [*LINES, "sched_reserve:        CPU compute buffer size =   110.00 MiB"]
    assert buffer_bytes(again)["compute"] == 110 * MIB + round(0.19 * MIB)


def test_other_lines_are_nothing():
    assert set(buffer_bytes(["print_info: file size   = 92.10 MiB (5.74 BPW)", "buffer size = ?"]).values()) == {0}


def test_the_cause_is_the_first_error_that_names_one():
    log = Log()
    log.take(4, "llama_model_load: error loading model: tensor 'x' data is not within the file bounds\n")
    log.take(4, "llama_model_load_from_file_impl: failed to load model\n")
    assert log.cause() == "tensor 'x' data is not within the file bounds"


@pytest.mark.parametrize("version", ["0.3.29", "0.4.0", "0", "1.0.0"])
def test_versions_outside_the_range_are_refused(version):
    with pytest.raises(UserError, match=r"outside the range .* pip install"):
        check_version(version)


def test_a_moved_struct_is_noticed():
    class Params(ctypes.Structure):
        _fields_ = [("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32)]

    library = types.SimpleNamespace(
        llama_model_default_params=Params, llama_context_default_params=lambda: Params(512, 512)
    )
    with pytest.raises(UserError, match="default n_batch reads 512, not 2048"):
        check_layout(library, "0.3.36")


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(llamacpp_library.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install"):
        llamacpp_library.load_library.__wrapped__()


def test_the_high_level_package_stays_out_and_can_still_be_imported():
    code = (
        "import sys\nfrom runtime.sessions.llamacpp_library import load_library\nload_library()\n"
        "assert 'jinja2' not in sys.modules and 'numpy' not in sys.modules and 'llama_cpp' not in sys.modules\n"
        "import llama_cpp\nassert llama_cpp.llama_cpp.llama_n_ctx and llama_cpp.Llama\nprint('both')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "both", done.stderr
