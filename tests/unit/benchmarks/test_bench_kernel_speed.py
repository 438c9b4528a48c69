from __future__ import annotations

from benchmarks.kernel_speed import measure, table


def test_a_row_is_of_both_and_of_the_same_bytes() -> None:
    row = measure("Q6_K", weighted=False, rounds=1)
    if row is None:  # another compiler has built this ggml
        return
    assert row["equal"]
    assert row["ratio"] == row["ours"] / row["ggml"]
    assert measure("Q4_0", weighted=False, rounds=1) is None


def test_the_table_marks_bytes_that_differ() -> None:
    row = {"type": "Q4_K", "weighted": True, "equal": False, "ggml": 10.0, "ours": 65.0, "ratio": 6.5}
    said = table({"rows": [row, {**row, "weighted": False, "equal": True}]})
    assert "| Q4_K | yes | 10.0 | 65.0 | 6.5 | **✗ no** |" in said
    assert "| Q4_K |  | 10.0 | 65.0 | 6.5 | yes |" in said
