"""Several reports on one page: the Pareto front, labels, notes, and what cannot be compared."""

from __future__ import annotations

import json
import math

import pytest
from support.markup import parsed
from support.reports import document, encoder_document, exported

from exporter.report.compare import compare, labels, letter
from exporter.report.page import comparison, write_page
from exporter.report.pareto import Point, pareto, plot, steps
from exporter.report.stored import Found
from runtime.artifact import FileRecord
from runtime.errors import ArtifactError, UserError


def sized(n_bytes):
    return {"Tiny.gguf": FileRecord(n_bytes, "00")}


@pytest.fixture
def founds(tmp_path):
    """Larger and nearer, twice; and one that is both larger and farther than the second."""
    return [
        Found("small", document(tmp_path / "a", kl=0.2, peak=150_000_000, quant="q2_k", files=sized(80_000_000))),
        Found("middle", document(tmp_path / "b", kl=0.05, peak=220_000_000, files=sized(105_000_000))),
        Found("worse", document(tmp_path / "c", kl=0.06, peak=200_000_000, quant="q5_0", files=sized(110_000_000))),
        Found("large", document(tmp_path / "d", kl=0.004, peak=300_000_000, quant="q8_0", files=sized(145_000_000))),
    ]


def on_front(points):
    return [point.name for point in pareto([Point(name, x, y) for name, x, y in points]) if point.front]


def test_the_front_is_what_no_other_beats():
    assert on_front([("a", 1, 3), ("b", 2, 2), ("c", 3, 2), ("d", 3, 1), ("e", 2, 4)]) == ["a", "b", "d"]
    assert on_front([("a", 1, 1), ("b", 1, 2)]) == ["a"]
    assert on_front([("a", 1, 1), ("twin", 1, 1), ("b", 2, 1)]) == ["a", "twin"]
    assert on_front([("alone", 5, 0)]) == ["alone"]


def test_the_front_is_drawn_as_stairs():
    assert steps([(1, 3), (2, 2), (4, 1)]) == [(1, 3), (2, 3), (2, 2), (4, 2), (4, 1)]
    assert steps([(1, 3)]) == [(1, 3)]


def test_each_plot_has_its_own_front(founds):
    found = compare(founds)
    size, memory = found.plots
    assert [row[3] for row in size.table.rows] == ["yes", "yes", "no", "yes"]
    # by peak memory the third is smaller than the second: nothing beats it there
    assert {row[0]: row[3] for row in memory.table.rows}["C Q5_0"] == "yes"
    assert {mark.kind for mark in size.marks} == {"on", "off"}
    assert [mark.label for mark in size.marks] == ["A Q2_K", "B Q4_K_M", "C Q5_0", "D Q8_0"]
    assert found.notes == ()
    assert found.table.rows[1] == (
        "B Q4_K_M", "failed", "105.0 MB", "6.17", "220.0 MB", "360 ms", "8.5 tokens/s", "0.05 nats", "1.1000",
        "90.0%", "both",
    )  # fmt: skip
    assert [row[-1] for row in found.table.rows] == ["both", "both", "memory", "both"]


def test_the_table_says_which_fronts(founds):
    founds[0].document["measurement"] = None  # in the plot of size alone
    founds[1].document["drift"] = None  # in none
    founds[3].document["measurement"]["peak_rss_bytes"] = 10**8
    founds[2].document["drift"]["mean_kl"] = 0.5  # beaten in both
    assert [row[-1] for row in compare(founds).table.rows] == ["size", "–", "no", "both"]


def test_the_table_says_the_verdict_that_the_list_says(founds):
    founds[0].document["verdict"] = "met"  # a line fails all the same
    for line in founds[1].document["lines"]:
        line["ok"] = None
    founds[1].document["verdict"] = "met"
    for found in founds[2:]:
        for line in found.document["lines"]:
            line["ok"] = None if line["ok"] is None else True
    founds[2].document["verdict"] = "met"
    founds[3].document["verdict"] = "not measured"
    verdicts = [row[1] for row in compare(founds).table.rows]
    assert verdicts == ["failed", "nothing judged", "met", "not measured"]


def test_a_bare_file_has_the_size_of_its_line(founds):
    founds[0].document["artifact"]["files"] = {}
    size, _ = compare(founds).plots
    assert size.table.rows[1][:2] == ("A Q2_K", "105.5")


def boxes(drawn):
    """Marks of one figure as they lie on a narrow phone."""
    for mark in drawn.marks:
        width = 2.3 * len(mark.label)
        left = {"start": mark.label_x, "middle": mark.label_x - width / 2, "end": mark.label_x - width}[mark.anchor]
        yield left, mark.label_y - 5, left + width, mark.label_y + 2


def test_labels_do_not_cover_each_other_nor_leave_the_figure():
    points = pareto([Point(f"{letter(at)} Q4_K_M", 100 + at % 5, 0.01 * 1.3 ** (at // 2)) for at in range(12)])
    placed = list(boxes(plot("id", "size", points, "KL")))
    assert all(left >= 0 and top >= 0 and right <= 100 and bottom <= 100 for left, top, right, bottom in placed)
    shared = [
        (a, b) for at, a in enumerate(placed) for b in placed[:at]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]  # fmt: skip
    assert shared == []


def test_points_at_one_place_share_a_mark():
    drawn = plot("id", "size", pareto([Point("A x", 5, 0.1), Point("B x", 5, 0.1)]), "KL")
    assert [mark.label for mark in drawn.marks] == ["A x, B x"]


@pytest.mark.parametrize("drifts", [[0.0], [0.0, 0.0], [0.0, 0.5], [1e-9], [5.0]])
def test_no_drift_and_one_point_have_a_place(drifts):
    drawn = plot("id", "size", pareto([Point(str(at), 5, drift) for at, drift in enumerate(drifts)]), "KL")
    for mark in drawn.marks:
        assert 0 < mark.x < 100
        assert 0 < mark.y < 100
    assert sorted(row[2] for row in drawn.table.rows) == sorted(f"{drift:.4g}" for drift in drifts)
    assert ("no drift at all" in drawn.caption) == (0.0 in drifts)


def test_what_has_no_figure_is_named_and_not_drawn(founds):
    founds[0].document["drift"] = None
    founds[1].document["drift"]["mean_kl"] = math.nan
    founds[2].document["measurement"] = None
    size, memory = compare(founds).plots
    assert len(size.marks) == 2
    assert len(memory.marks) == 1
    assert compare(founds).notes == (
        "not in the plot of size of the artifact, because a figure for it is missing: A Q2_K, B Q4_K_M",
        "not in the plot of peak memory, because a figure for it is missing: A Q2_K, B Q4_K_M, C Q5_0",
    )
    for found in founds:
        found.document["drift"] = None
    assert compare(founds).plots == ()
    assert "No report has the drift that a figure needs" in parsed(comparison(founds)).text


def test_encoders_are_not_mixed_with_models_that_generate(founds, tmp_path):
    with pytest.raises(UserError, match=r"^encoder is an encoder and small generates text: .* a page of each kind$"):
        comparison([*founds, Found("encoder", encoder_document(tmp_path))])


def test_encoders_are_compared_by_their_own_measure(tmp_path):
    embeds = [Found(name, encoder_document(tmp_path, quant=name)) for name in ("int8", "int4")]
    found = compare(embeds)
    assert found.plots[0].y_label == "1 - mean cosine (logarithmic)"
    assert found.table.header[5:9] == ("latency", "cosine", "rank correlation", "label agreement")
    assert found.plots[0].table.rows[0][2] == "0.01"
    for one in embeds:
        one.document["drift"] |= {"mean_cosine": None, "label_agreement": 0.98}
    assert compare(embeds).plots[0].y_label == "share of other labels (logarithmic)"
    embeds[0].document["drift"] = None
    assert len(compare(embeds).plots[0].marks) == 1


def test_what_keeps_numbers_from_being_compared_is_said(founds):
    founds[0].document["artifact"]["source"] = "./another"
    founds[1].document["measurement"]["host"]["cpu"] = "another"
    founds[2].document["drift"]["n_tokens_scored"] = 255
    founds[3].document["measurement"]["options"]["context"] = 4096
    said = parsed(comparison(founds)).text
    for expected in (
        "Note: made from different models: ./another, ./tiny; drift is each from its own source",
        "verified on different texts or numbers of tokens",
        "measured on different machines",
        "measured with different contexts",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("part", "key", "value", "note"),
    [
        (("measurement", "options"), "threads", 4, "numbers of threads: their speed cannot"),
        (("measurement", "options"), "batch", 64, "batches: their memory and speed"),
        (("measurement", "options"), "mmap", False, "ways to load the weights (mapped or read): their memory and"),
        (("measurement", "options"), "kv_type", "q8_0", "types of KV cache: their memory and speed"),
        (("measurement", "trials"), "prompt_tokens", 64, "lengths of the prompt: their speed"),
        (("measurement", "trials"), "decode_tokens", 8, "numbers of generated tokens: their speed"),
        (("drift",), "chunk_tokens", 256, "lengths of a chunk: their drift"),
        (("drift",), "reference", "another", "references: their drift"),
    ],
)
def test_a_difference_of_how_it_was_done_is_said(founds, part, key, value, note):
    inside = founds[0].document
    for name in part:
        inside = inside[name]
    inside[key] = value
    (said,) = compare(founds).notes
    assert note in said


def test_a_bare_file_is_from_no_other_model(founds):
    founds[0].document["artifact"] |= {"files": {}, "source": "some/Tiny.gguf"}
    assert compare(founds).notes == ()


def test_labels_tell_artifacts_apart(founds, tmp_path):
    assert labels(founds) == ["A Q2_K", "B Q4_K_M", "C Q5_0", "D Q8_0"]
    other = Found("x", document(tmp_path, name="A name that is far too long for a figure", format="onnx", quant=""))
    assert labels([founds[0], other]) == ["A Tiny GGUF Q2_K", "B A name that is far too l ONNX onnx"]
    assert [letter(at) for at in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_the_page_is_well_formed_and_its_figures_have_names(founds):
    tree = parsed(comparison(founds))
    assert tree.all("h1")[0].text == "4 artifacts compared"
    for svg in tree.all("svg"):
        if svg.attributes.get("role") == "img":
            assert all(tree.one(name).text for name in svg.attributes["aria-labelledby"].split())
    ids = [element.attributes["id"] for element in tree.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_hostile_names_are_text_here_too(founds, tmp_path):
    founds.append(Found("x", document(tmp_path, name="<script>x</script>", source="<img src=x>")))
    tree = parsed(comparison(founds))
    assert not tree.all("script", "img")
    assert "<script>x</script>" in tree.text


def test_a_directory_and_a_kept_json(tmp_path):
    exported(tmp_path / "one")
    kept = tmp_path / "two.json"
    kept.write_text(json.dumps(document(tmp_path / "gone", kl=0.1)))
    write_page([tmp_path / "one", kept], tmp_path / "page.html")
    assert "2 artifacts compared" in (tmp_path / "page.html").read_text()


def test_damaged_reports_are_one_line(founds):
    founds[1].document["drift"] = {**founds[1].document["drift"], "text_sha256": [1]}
    with pytest.raises(ArtifactError, match="damaged report"):
        comparison(founds)
