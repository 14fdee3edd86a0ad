"""Findings as text, JSON, SARIF and HTML, and what is left out of them."""

from __future__ import annotations

import json

import pytest

from pallas_shim.check import sarif, suppress
from pallas_shim.check.results import (
    Results,
    finding_from_dict,
    finding_to_dict,
    place,
    unique,
)
from tests.check.samples import deadlock, race

SOURCE = """\
@decorator
def accumulate(x_ref, o_ref):
    o_ref[...] += x_ref[...]{comment}
"""


@pytest.fixture
def source(tmp_path):
    def write(comment=""):
        path = tmp_path / f"kernels{len(list(tmp_path.iterdir()))}.py"
        path.write_text(SOURCE.format(comment=comment))
        return str(path)

    return write


def test_the_table_says_all_of_a_finding(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = str(Results((race(source()), deadlock())))
    assert text.splitlines()[0] == "pallas_shim check: 2 findings (1 races, 1 sync)"
    for part in (
        "races/write-write: kernel accumulate (kernels0.py:2), ref o_ref",
        "writes o_ref[0:8, 0:128]  kernels0.py:3  device 1, core 0  cell (3, 0)",
        "writes o_ref[0:8, 0:128]  kernels0.py:3  device 0, core 0  cell (2, 0)",
        "> o_ref[...] += x_ref[...]",
        "Declare axis 0 as arbitrary",
        "waits for sem (has 0, needs 1)  src/ring.py:40  device 0",
    ):
        assert part in text


def test_the_table_fits(source):
    long = race(
        source(),
        kernel="_".join(["long"] * 40),
        message="word " * 100,
        advice="advice " * 50,
        ref="a_ref" * 8,
        source="/" + "/".join(["directory"] * 20) + "/x.py:1",
    )
    results = Results((long, deadlock()), (), (("k" * 90, "reason " * 40),), ("x" * 50,))
    assert max(map(len, str(results).splitlines())) <= 100
    assert str(results).count("advice") == 50


def test_files_of_equal_names_have_their_paths():
    one, other = race("/a/ops/kernels.py"), race("/b/ops/kernels.py")
    text = str(Results((one, other)))
    assert "/a/ops/kernels.py:3" in text and "/b/ops/kernels.py:3" in text


def test_nothing_found():
    assert str(Results(())) == "pallas_shim check: no findings"


def test_what_was_not_checked_is_said():
    text = str(Results((), (), (("conv", "it runs in JAX"),)))
    assert "Not checked: conv: it runs in JAX" in text


def test_dicts_round_trip():
    for finding in (race(), deadlock()):
        assert finding_from_dict(json.loads(json.dumps(finding_to_dict(finding)))) == finding
    made = json.loads(Results((race(),)).to_json())
    assert (made["schema"], made["schema_version"]) == ("pallas_shim.findings", 1)
    assert [f["accesses"][0]["cell"] for f in made["findings"]] == [[3, 0]]


def test_several_processes_find_the_same_once():
    again = race(accesses=(race().accesses[0], race().accesses[1]), message="again")
    assert unique([race(), deadlock(), again]) == [race(), deadlock()]


def test_html_is_escaped():
    shown = Results((race(kernel="<lambda>"),))._repr_html_()
    assert "&lt;lambda&gt;" in shown and "<lambda>" not in shown


@pytest.mark.parametrize(
    "where, want",
    [
        ("a.py:3", ("a.py", 3)),
        ("/a b/c.py:3", ("/a b/c.py", 3)),
        ("a.py:3 (f)", ("a.py", 3)),
        ("<stdin>:1", ("<stdin>", 1)),
        ("a.py", None),
        (None, None),
    ],
)
def test_places(where, want):
    assert place(where) == want


# -- suppressions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "comment, hidden",
    [
        ("", False),
        ("  # pallas: ignore", True),
        ("  # pallas: ignore[races]", True),
        ("  # noqa  # pallas: ignore[bounds, races] known", True),
        ("  # pallas: ignore[write-write]", True),
        ("  # pallas: ignore[races/write-write]", True),
        ("  # pallas: ignore[bounds]", False),
        ("  # pallas: ignore[read-write]", False),
    ],
)
def test_comments(source, comment, hidden):
    found = race(source(comment))
    results = suppress.apply([found])
    assert bool(results.suppressed) is hidden and bool(results.findings) is not hidden


@pytest.mark.parametrize(
    "entry, hidden",
    [
        ('kind = "races"', True),
        ('kind = "races/write-write"', True),
        ('kind = "races/read-write"', False),
        ('kind = "sync"', False),
        ('kernel = "accum*"', True),
        ('kernel = "accum"', False),
        ('line = "kernels0.py:3"', True),
        ('line = "kernels0.py:2"', True),
        ('line = "kernels0.py:4"', False),
        ('line = "kernels0.py"', True),
        ('line = "ernels0.py"', False),
        ('kind = "races"\nline = "kernels0.py:4"', False),
    ],
)
def test_entries_of_a_file(source, tmp_path, entry, hidden):
    found = race(source())
    file = tmp_path / "suppressions.toml"
    file.write_text(f'[[suppress]]\n{entry}\nreason = "known"\n')
    results = suppress.apply([found], suppress.read(str(file)))
    assert [s.reason for s in results.suppressed] == (["known"] if hidden else [])
    assert bool(results.unused) is not hidden
    assert ("matches nothing" in str(results)) is not hidden


@pytest.mark.parametrize(
    "content, said",
    [
        ("[[suppress]]\n", "would suppress everything"),
        ('[[suppress]]\nreason = "x"', "would suppress everything"),
        ('[[suppress]]\nkinds = "races"', "kinds isn't known"),
        ('[[suppress]]\nkind = "race"', "isn't one of bounds"),
        ("[[suppress]]\nline = 3", "has texts for"),
        ('[suppress]\nkind = "races"', "only entries"),
        ('[[ignore]]\nkind = "races"', "only entries"),
        ("not TOML", "can't be read"),
    ],
)
def test_bad_files(tmp_path, content, said):
    file = tmp_path / "suppressions.toml"
    file.write_text(content)
    with pytest.raises(suppress.BadFile, match=said):
        suppress.read(str(file))


# -- SARIF ------------------------------------------------------------------------------------


def test_sarif(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hidden = suppress.apply([race(source("  # pallas: ignore"))]).suppressed
    results = Results((race(source()), deadlock()), hidden, (("conv", "it runs in JAX"),))
    (run,) = sarif.document(results)["runs"]
    first, second, third = run["results"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["races/write-write", "sync/deadlock"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    where = first["locations"][0]["physicalLocation"]
    assert where["region"] == {"startLine": 3}
    assert where["artifactLocation"] == {"uri": "kernels1.py", "uriBaseId": "SRCROOT"}
    assert len(first["relatedLocations"]) == 2
    assert "device 1, core 0, cell (3, 0) writes o_ref[0:8, 0:128]" in str(first)
    elsewhere = second["locations"][0]["physicalLocation"]["artifactLocation"]
    assert elsewhere == {"uri": "file:///src/ring.py"}
    assert "suppressions" not in first
    assert third["suppressions"] == [{"kind": "inSource", "justification": ""}]
    assert "conv wasn't checked" in str(run["invocations"])


def test_a_fingerprint_outlives_moved_lines():
    one = race(accesses=race("/a/kernels.py").accesses)
    moved = race(
        accesses=tuple(a.__class__(a.what, a.indices, "/b/kernels.py:77") for a in one.accesses)
    )
    one, moved = (sarif.document(Results((f,)))["runs"][0]["results"][0] for f in (one, moved))
    assert one["partialFingerprints"] == moved["partialFingerprints"]
