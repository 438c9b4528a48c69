"""The page of one report: well-formed, self-contained, escaped, and whole whatever the report lacks."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from support.markup import parsed
from support.reports import document, encoder_document, exported

from exporter.report.page import comparison, page, refuse_other_file, write_page
from exporter.report.stored import Found, founds_at
from runtime.budget import Line
from runtime.errors import ArtifactError, UserError
from targets.stored_tensors import StoredTensor

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def found_at(path):
    (found,) = founds_at(path)
    return found


TENSORS = (
    StoredTensor("token_embd", "Q8_0", (320, 64), 20480, 21760),
    StoredTensor("blk.0.attn_q", "Q4_K", (64, 256), 16384, 9216),
    StoredTensor("blk.0.attn_norm", "F32", (64,), 64, 256),
    StoredTensor("blk.1.attn_q", "Q6_K", (64, 256), 16384, 13440),
    StoredTensor("blk.1.ffn_up", "Q4_K", (64, 256), 16384, 9216),
)


@pytest.fixture
def report(tmp_path):
    return document(tmp_path / "out")


def read(found, tensors=TENSORS):
    return parsed(page(Found("here", found, tensors)))


def test_the_verdict_comes_first_and_in_words(report):
    tree = read(report)
    assert tree.all("header")[0].text == (
        "packlight report Tiny, GGUF Q4_K_M Failed for the Raspberry Pi 5 (8 GB): decode"
    )
    for line in report["lines"]:
        line["ok"] = None if line["ok"] is None else True
    assert "Met for the Raspberry Pi 5 (8 GB): all 2 limits hold." in read({**report, "verdict": "met"}).text
    assert "Not verified, not measured for the" in read({**report, "verdict": "not verified, not measured"}).text
    for line in report["lines"]:
        line["ok"] = None
    assert "Nothing was judged: no budget was named." in read({**report, "verdict": "met"}).text


def test_every_part_is_there(report):
    tree = read(report)
    text = tree.text
    for expected in (
        "peak memory : 220.0 MB, budget ≤ 300.0 MB, 73% of it: holds",
        "decode : 8.5 tokens/s, budget ≥ 10.0 tokens/s, 85% of it: fails",
        "weights : 105.0 MB, 48% of the peak",
        "KV cache : 47.0 MB, 21% of the peak",
        "anonymous: cannot be dropped : 100.0 MB",
        "3 trials: median 360 ms, 95th percentile of the bad side 414 ms",
        "at most 219.0 MB among samples",
        "load, 0.00 to 1.00 s: up to 150.0 MB",
        "Speed over 20 s: 22.0 tokens/s at first, 18.0 at the end.",
        "Energy: 100.0 J for 400 tokens, 0.250 J each (a meter).",
        "KL divergence, mean 0.05 nats",
        "52 of 52 hard texts equal",
        "at positions 256 to 510 of the context, in 2 spans: from 0.04 to 0.06 nats",
        "packlight verify out --against ./tiny --chunks=8",
        "packlight measure out --context=2048 --threads=2 --trials=3 packlight verify",
        "Note: a note.",
    ):
        assert expected in text, expected


def test_the_map_has_a_cell_for_every_matrix_and_a_row_for_every_tensor(report):
    tree = read(report)
    grid = next(table for table in tree.all("table") if table.attributes["class"] == "map")
    cells = [[cell.text for cell in row.all("th", "td")] for row in grid.all("tr")]
    assert cells == [["layer", "attn_q", "ffn_up"], ["0", "Q4_K", "–"], ["1", "Q6_K", "Q4_K"]]
    q4 = grid.all("td")[0].attributes
    assert q4 == {"class": "shade2", "title": "blk.0.attn_q: Q4_K, 4.50 bits, 9,216 B"}
    for tensor in TENSORS:
        assert f"{tensor.name} {tensor.type}" in tree.text
    assert "token_embd: Q8_0" in tree.text


def test_headings_and_landmarks_are_in_order(report):
    tree = read(report)
    (html,) = tree.all("html")
    assert html.attributes["lang"] == "en"
    assert [len(tree.all(tag)) for tag in ("h1", "main", "header", "footer")] == [1, 1, 1, 1]
    levels = [int(heading.tag[1]) for heading in tree.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for section in tree.all("section"):
        assert tree.one(section.attributes["aria-labelledby"]).tag == "h2"


def test_every_figure_has_a_name_and_a_place_for_it(report):
    tree = read(report)
    drawn = [svg for svg in tree.all("svg") if svg.attributes.get("role") == "img"]
    assert len(drawn) == 2 + 4 + 4 + 3 + 3  # budgets, split, kinds, distributions, and the three over time and context
    for svg in drawn:
        names = svg.attributes["aria-labelledby"].split()
        assert svg.all("title")
        assert all(tree.one(name).text for name in names)
    for svg in tree.all("svg"):
        inner = svg.attributes.get("class") == "inner"
        assert inner or svg.attributes.get("role") == "img" or svg.attributes.get("aria-hidden") == "true"
    assert all(figure.all("details") for figure in tree.all("figure"))
    ids = [element.attributes["id"] for element in tree.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def outside(text):
    """What a browser would load or run."""
    tree = parsed(text)
    loads = [
        (element.tag, value)
        for element in tree.all()
        for name, value in element.attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "xlink:href") or name.startswith("on")
        if not (value or "").startswith(("#", "data:,"))
    ]
    return loads + [(e.tag, "") for e in tree.all("script", "iframe", "object", "embed", "base", "form", "img")]


def test_a_page_is_self_contained(report):
    text = page(Found("here", report, TENSORS))
    assert outside(text) == []
    assert outside(text.replace("<main", '<a href="http://x/">x</a><main')) == [("a", "http://x/")]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert not re.search(r"url\(|@import", text)


def test_hostile_names_are_text(tmp_path):
    root = tmp_path / "out"
    found = document(root, name=EVIL, source=EVIL, quant="x<b>")
    found["notes"] = [EVIL]
    found["lines"][0]["text"] = EVIL
    found["measurement"]["host"]["cpu"] = EVIL
    found["measurement"]["timeline"][1] = {**found["measurement"]["timeline"][1], "phase": EVIL}
    found["drift"]["engine"] = EVIL
    found["provenance"]["command"] = EVIL
    tensors = (StoredTensor(f"blk.0.{EVIL}", f"Q<i> {EVIL}", (2, 2), 4, 2),)
    text = page(Found("here", found, tensors))
    assert outside(text) == []
    assert not parsed(text).all("i", "b")
    assert parsed(text).text.count("alert(1)") > 9


@pytest.mark.parametrize("part", ["measurement", "drift", "device"])
def test_parts_that_were_not_found_are_left_out(report, part):
    tree = read({**report, part: None})
    missing = {
        "measurement": "Memory was not measured.",
        "drift": "Drift was not verified.",
        "device": "Failed: decode",
    }
    assert missing[part] in tree.text


def test_a_report_of_an_older_packlight_has_fewer_figures(report):
    for name in ("timeline", "sustained", "resident"):
        del report["measurement"][name]
    del report["drift"]["kl_by_position"]
    text = read(report).text
    assert "Memory over time" not in text
    assert "Speed over time" not in text
    assert "Drift along the context" not in text
    assert "What backs it at the end" not in text
    assert "KV cache" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "none", 10**400])
def test_numbers_that_are_none_do_not_break_the_page(report, value):
    measured, drift = report["measurement"], report["drift"]
    measured["peak_rss_bytes"] = measured["memory"]["weights_bytes"] = value
    measured["first_token_ms"] = {"median": value, "p95": value, "spread": value, "values": [value, 1.0]}
    measured["decode_tokens_per_s"]["values"] = [value]
    measured["timeline"][0]["rss_bytes"] = measured["sustained"]["windows"][0]["tokens_per_s"] = value
    drift["mean_kl"] = drift["kl_by_position"][0]["mean_kl"] = value
    report["lines"][1] |= {"value": value, "limit": value}
    text = page(Found("here", report, TENSORS))
    assert not re.search(r'="(nan|inf|None)%?"', text)
    parsed(text)


HUGE = 10**400


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("artifact", "n_params"), HUGE),
        (("artifact", "bits_per_weight"), HUGE),
        (("artifact", "files", "Tiny-Q4_K_M.gguf", "bytes"), HUGE),
        (("artifact", "files", "Tiny-Q4_K_M.gguf", "sha256"), HUGE),
        (("artifact", "files", "Tiny-Q4_K_M.gguf", "sha256"), 5),
        (("drift", "kl_by_position", 0, "first"), math.inf),
        (("drift", "mean_kl"), 1.7e308),
        (("measurement", "first_token_ms", "values"), [-1.7e308, 1.7e308]),
        (("measurement", "options", "threads"), [{}]),
        (("measurement", "trials", "sustained_s"), {}),
        (("provenance", "command"), "\ud800"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_hostile_values_are_a_page_or_one_line(report, path, value):
    inside = report
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    founds = [Found("here", report, TENSORS), Found("there", document(Path("x")), TENSORS)]
    for draw in (lambda: page(founds[0]), lambda: comparison(founds)):
        text = said = ""
        try:
            text = draw()
        except ArtifactError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 400
        assert said or parsed(text).all("main")
        assert not re.search(r'="(nan|inf|None)%?"', text)


def test_a_limit_of_zero_has_no_bar(report):
    report["lines"].append(
        {"name": "token ids", "value": 0.0, "limit": 0.0, "ok": True, "text": "equal", "limit_text": "equal"}
    )
    tree = read(report)
    assert "token ids equal equal holds" in tree.text
    assert "token ids : equal" not in tree.text


def test_what_was_never_measured_has_no_bar(report):
    report["lines"] += [line.to_json() | {"text": line.text, "limit_text": line.limit_text} for line in (
        Line("first token", "none was measured", "≤ 500 ms", ok=False, value=0.0, limit=500.0),
        Line("prefill", "none was measured", "≥ 20 tokens/s", ok=False, value=0.0, limit=20.0),
        Line("fits the cap", "was killed", "≤ 300.0 MB", ok=False, value=299e6, limit=300e6),
        Line("load", "3 s", "≤ 2 s", ok=False, value=3.0, limit=2.0),
    )]  # fmt: skip
    text = read(report).text
    assert "first token none was measured ≤ 500 ms fails" in text
    assert "0% of it" not in text.replace("150% of it", "")
    assert "fits the cap : " not in text
    assert "load : 3 s, budget ≤ 2 s, 150% of it: fails" in text


def commands_of(found):
    return [element.text for element in read(found).all("code")]


def test_the_commands_have_the_options_that_were_used(report):
    report["measurement"]["options"] |= {"batch": 64, "mmap": False, "kv_type": "q8_0"}
    report["measurement"]["trials"] = {
        "prompt_tokens": 100, "decode_tokens": 9, "count": 5, "turns": 4, "fill_context": True, "sustained_s": 300.0,
    }  # fmt: skip
    report["measurement"]["host"]["on"] = "ssh:pi@board"
    report["drift"] |= {"n_chunks": 64, "text_name": "my text.txt"}
    _, measure, verify, _ = commands_of(report)
    assert measure == (
        "packlight measure out --context=2048 --threads=2 --batch=64 --no-mmap --kv-type=q8_0 --prompt-tokens=100 "
        "--decode-tokens=9 --turns=4 --fill-context --sustained=300s --on=ssh:pi@board"
    )
    assert verify == "packlight verify out --against ./tiny --chunks=64 '--text=my text.txt'"
    report["artifact"]["contract"]["kv_type"] = "q8_0"  # the artifact's own
    report["drift"]["text_name"] = "pydoc_data.topics of CPython 3.11.7, second half"
    _, measure, verify, _ = commands_of(report)
    assert "--kv-type" not in measure
    assert "--text" not in verify


@pytest.mark.parametrize(
    ("made_by", "tools"),
    [
        ("packlight export ./tiny --on adb:4AC --engine '/my tools' -o out", "'--engine=/my tools'"),
        ("packlight export ./tiny --on adb:4AC --engine=tools", "--engine=tools"),
        ("packlight report", "--engine=DIR"),
        ("an 'open quote", "--engine=DIR"),
    ],
)
def test_the_command_for_a_phone_has_the_engines_tools(made_by, tools, report):
    report["measurement"]["host"]["on"] = "adb:4AC"
    report["provenance"]["command"] = made_by
    assert commands_of(report)[1].endswith(f" --on=adb:4AC {tools}")


def test_the_commands_of_a_bare_file_name_the_file(report):
    report["artifact"] |= {"files": {}, "source": "some/Tiny-Q4_K_M.gguf"}
    assert commands_of(report)[1:] == ["packlight measure Tiny-Q4_K_M.gguf --context=2048 --threads=2 --trials=3"]
    assert "some/Tiny-Q4_K_M.gguf" not in read(report).text
    assert "made from –" in read(report).text


def test_a_small_drift_keeps_its_digits(report):
    report["drift"] |= {"mean_kl": 0.00001234, "p99_kl": 0.0000567}
    report["drift"]["kl_by_position"][0]["mean_kl"] = 0.00000321
    text = read(report).text
    for expected in ("mean 1.234e-05 nats", "99th percentile 5.67e-05 nats", "from 3.21e-06 to 0.06", "382 3.21e-06"):
        assert expected in text, expected
    founds = [Found("a", report), Found("b", document(Path("x")))]
    assert "1.234e-05 nats" in parsed(comparison(founds)).text


def test_a_page_of_a_small_model_is_as_small_as_promised(report):
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
    tensors = [StoredTensor(f"blk.{layer}.{kind}", "Q4_K", (576, 1536), 884736, 497664)
               for layer in range(30) for kind in kinds]  # fmt: skip
    report["measurement"]["timeline"] = [
        {
            "seconds": at / 10,
            "rss_bytes": 150_000_000 + at,
            "anonymous_bytes": 90_000_000,
            "phase": f"trial {at // 100}",
        }
        for at in range(600)
    ]
    assert len(page(Found("here", report, tensors)).encode()) < 100_000  # what docs/how-to/report.md says


def test_memory_without_a_split_is_shown_as_far_as_it_is_known(report):
    report["measurement"]["memory"] = None
    text = read(report).text
    assert "Memory was not measured." not in text
    assert "Where the peak lies" not in text
    for expected in ("Peak memory: 220.0 MB.", "What backs it at the end", "Memory over time"):
        assert expected in text, expected


def test_an_encoder(tmp_path):
    text = read(encoder_document(tmp_path), None).text
    for expected in (
        "latency of a text, ms",
        "cosine, mean 0.99000",
        "8 texts from a text",
        "trials of 128 tokens read.",
    ):
        assert expected in text, expected
    assert "KV cache" not in text


def test_a_format_that_nobody_can_look_into(report):
    found = Found("here", report, untold="The format ptl does not say how its tensors are stored.")
    assert "The format ptl does not say how its tensors are stored." in parsed(page(found)).text
    assert "The file holds no matrix." in read(report, ()).text


@pytest.mark.parametrize("path", [("lines",), ("artifact", "files"), ("provenance",), ("measurement", "host")])
def test_a_damaged_report_is_one_line(report, path):
    inside = report
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = 7
    with pytest.raises(ArtifactError, match=r"^here: is a damaged report"):
        page(Found("here", report, TENSORS))


CONTRAST = 4.5
PAIRS = [
    *((name, "back") for name in ("text", "soft", "accent", "good", "bad", "open")),
    *((name, "card") for name in ("text", "good", "bad", "open")),
    *(("text", f"shade{number}") for number in range(6)),
]


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_contrast_in_both_schemes(report):
    assert luminance("#ffffff") == pytest.approx(1.0)
    style = page(Found("here", report, TENSORS)).partition("<style>")[2]
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for text, back in PAIRS:
            light, dark = sorted((luminance(scheme[text]), luminance(scheme[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= CONTRAST, (text, back)


def test_an_exported_directory_becomes_a_page(tmp_path):
    out = tmp_path / "page.html"
    write_page([exported(tmp_path / "out")], out)
    tree = parsed(out.read_text(encoding="utf-8"))
    assert "blk.0.attn_q Q4_K" in tree.text
    assert next(table for table in tree.all("table") if table.attributes["class"] == "map")
    write_page([exported(tmp_path / "other", name="Another")], out)  # an earlier page is replaced
    assert parsed(out.read_text(encoding="utf-8")).all("h1")[0].text.startswith("Another")


@pytest.mark.parametrize("name", ["out", "out/manifest.json", "out/golden-q4_k_m.gguf"])
def test_a_directory_has_several_names(tmp_path, name):
    exported(tmp_path / "out")
    found = found_at(tmp_path / name)
    assert found.tensors
    assert found.artifact.root == tmp_path / "out"


def test_a_moved_directory_is_where_it_was_named(tmp_path):
    exported(tmp_path / "out").rename(tmp_path / "elsewhere")
    found = found_at(tmp_path / "elsewhere")
    assert found.artifact.root == tmp_path / "elsewhere"
    assert found.tensors
    kept = found_at(tmp_path / "elsewhere" / "report.json")  # the file alone still names the old place
    assert (kept.tensors, kept.untold) == (None, "The artifact's file was not there when this page was made.")


def test_another_file_of_the_directory_is_not_its_artifact(tmp_path):
    out = exported(tmp_path / "out")
    shutil.copyfile(out / "golden-q4_k_m.gguf", out / "other.gguf")
    with pytest.raises(
        ArtifactError, match=r"other\.gguf: is not what the report\.json beside it is about; run 'packl"
    ):
        found_at(out / "other.gguf")


@pytest.mark.parametrize("cut", [None, 100])
def test_missing_and_cut_weights_are_one_line(tmp_path, cut):
    out = exported(tmp_path / "out")
    weights = out / "golden-q4_k_m.gguf"
    if cut is None:
        weights.unlink()
    else:
        os.truncate(weights, cut)
    with pytest.raises(ArtifactError, match="named in manifest.json but missing" if cut is None else "has 100 bytes"):
        found_at(out)
    if cut is not None:
        assert found_at(out / "report.json").untold == "The file that lies there is another than the report is about."


def kept_of(tmp_path, **changes):
    """A report that --json was kept of, about the .gguf file alone."""
    found = document(exported(tmp_path / "out"), entry="golden-q4_k_m.gguf", files={})
    size = (tmp_path / "out" / "golden-q4_k_m.gguf").stat().st_size
    found["lines"][0] |= {"value": float(size), **changes}
    (tmp_path / "kept.json").write_text(json.dumps(found))
    return found_at(tmp_path / "kept.json")


def test_a_bare_file_is_known_by_its_size(tmp_path):
    assert kept_of(tmp_path).tensors
    assert kept_of(tmp_path / "a", value=1.0).untold == "The file that lies there is another than the report is about."
    assert "does not say how large" in kept_of(tmp_path / "b", name="another line").untold


def test_a_relative_place_is_not_looked_into(tmp_path, monkeypatch):
    out = exported(tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    report["artifact"]["root"] = "out"
    (tmp_path / "kept.json").write_text(json.dumps(report))
    monkeypatch.chdir(tmp_path)
    assert "in which directory" in found_at(tmp_path / "kept.json").untold


def test_reports_name_their_place_absolutely(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert document(Path("out"))["artifact"]["root"] == str(tmp_path / "out")


def test_a_place_of_another_user_leaves_the_tensors_untold(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(document(tmp_path / "theirs")))
    there = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: refused(self) if "theirs" in self.parts else there(self))
    assert found_at(kept).untold == "The artifact's file could not be looked into: Permission denied."


@pytest.mark.parametrize("error", [IndexError, ZeroDivisionError, RecursionError, PermissionError])
def test_an_odd_model_leaves_the_tensors_untold(tmp_path, monkeypatch, error):
    def odd(_artifact):
        raise error("odd")

    monkeypatch.setattr("targets.stored_tensors.stored_tensors", odd)
    found = found_at(exported(tmp_path / "out"))
    assert found.tensors is None
    assert "could not be looked into" in parsed(page(found)).text


def test_a_name_that_is_no_utf8_is_shown_as_far_as_it_goes(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_page([exported(root, name="x\ud800y")], tmp_path / "page.html")
    assert "x?y" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_has_no_report_says_what_to_run(tmp_path):
    out = exported(tmp_path / "out")
    (out / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"no report\.json .*; run 'packlight measure .*out --json > "):
        found_at(out)
    bare = tmp_path / "x.gguf"
    bare.write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match="run 'packlight measure"):
        found_at(bare)
    with pytest.raises(ArtifactError, match="no such file or directory"):
        found_at(tmp_path / "none")


def test_a_report_about_other_files_is_refused(tmp_path):
    out = exported(tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    report["artifact"]["files"]["golden-q4_k_m.gguf"]["sha256"] = "0" * 64
    (out / "report.json").write_text(json.dumps(report))
    with pytest.raises(ArtifactError, match="is about other files"):
        found_at(out)


def test_the_checks_of_a_budget_file(tmp_path):
    path = tmp_path / "checks.json"
    checks = {name: document(tmp_path / name) for name in ("phone", "board")}
    path.write_text(json.dumps({"verdict": "failed", "checks": checks}))
    assert [found.where for found in founds_at(path)] == [f"{path}, check phone", f"{path}, check board"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a packlight report of version 1"),
        ('{"packlight_report": 2}', "is not a packlight report of version 1"),
        ('{"verdict": "met", "checks": {}}', "is not a packlight report"),
        ('{"verdict": "met", "checks": {"a": {"packlight_report": 7}}}', "is not a packlight report"),
        ('{"packlight_report": 1}', "names no artifact"),
        ('{"packlight_report": 1, "artifact": {"files": 3}}', "is a damaged report"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=message) as caught:
        found_at(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_page_is_not_written_over(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    theirs = tmp_path / "index.html"
    theirs.write_text("<!doctype html>\n<title>packlight report</title><p>my own</p>")
    for path in (model, theirs):
        with pytest.raises(UserError, match="is there and no page of packlight's"):
            refuse_other_file(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is there and no regular file"):
        refuse_other_file(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a directory"):
        refuse_other_file(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_page([exported(tmp_path / "out")], tmp_path / "none" / "page.html")
