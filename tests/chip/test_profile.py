"""A small program for the scalar unit, written by hand: counts, copies, units, lines."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from pallas_shim.chip import bundles, copies, issue, profile, profile_view, scalar_unit, tpus, whole
from pallas_shim.chip.dumps import Files
from pallas_shim.chip.jobs import ACCEPTED, Answer
from pallas_shim.chip.verdicts import Verdict

# A loop of 5 turns, that copies 64 granules in every second one and stores on one line.
LOOP = """
= control target key end

     0   :  { %s10_s9 = smov 0 /* copy for cssa */ }
   0x1 LB: > { %s11_s9 = sphi %s10_s9, %s12_s9  ;;  %s20_s1 = sand.u32 1, %s11_s9 } /* Start region 7 */
   0x2   : > { %p1_p0 = scmp.eq.s32.totalorder %s20_s1, 0  ;;  %s12_s9 = sadd.s32 1, %s11_s9 }
   0x3   : > { %1 = dma.hbm_to_vmem [thread:$0]  (%p1_p0), /*hbm=*/%s3_s3, /*size_in_granules=*/64, /*vmem=*/%s4_s4, /*dst_syncflagno=*/%s5_s5 }
   0x4   : > { %p2_p1 = scmp.ge.s32.totalorder %s12_s9, BOUND  ;;  %2 = sst [smem:[#allocation1_spill]] %s12_s9 }
   0x5   : > { %3 = sbr.rel (!%p2_p1) target = $region7 }
   0x6   : > { %4 = vst [vmem:[%s6_s6] sm:$0xff] %v1 /* loc("/home/user/kernel.py":13:21 to :78) */ }
   0x7   : > {}
   0x8   : > {}
   0x9   : > {}
   0xa   :  { %s7_s7 = sld [smem:[#allocation1_spill]] } /* End region 7 */
"""  # noqa: E501
UNITS = "== CAPACITY:\nMXU, VALU, VSTORE, SALU\n 2 4 1 2\n== UTILIZATION:\n" + "".join(
    f"0 0 {int(number == 6)} {int(number in (0, 1, 2))}\n" for number in range(11)
)


RATES = copies.Rates(bandwidth=32.0, latency=100.0, start=10.0)


def files(bound="5", text=LOOP, units=UNITS):
    return Files("", units, text.replace("BOUND", bound))


def profiled(schedule, tpu="v5e", **answer):
    said = Answer(ACCEPTED, libtpu="9.9", schedule=schedule, **answer)
    return profile.profile(Verdict("k", None, "()", tpu, tpus.TPUS[tpu], said, None, "0.10.2"))


def test_how_often_each_bundle_runs():
    ran = scalar_unit.run(bundles.read(files()), "v5e", RATES)
    assert ran.counts == [1] + [5] * 9 + [1]
    started = scalar_unit.Copy("dma.hbm_to_vmem", 3, 3 * 64 * 32)
    assert list(ran.copies.values()) == [started]
    steps = {(s.bundles, s.hbm): s.times for s in ran.steps}
    assert steps == {(1, 0): 1, (9, 2048): 2, (9, 0): 2, (10, 2048): 1}


def test_an_older_form_of_branches():
    text = LOOP.replace("target = $region7", "target bundleno = 99 (0x63), region = 7")
    ran = scalar_unit.run(bundles.read(files(text=text)), "v5e", RATES)
    assert ran.counts == [1] + [5] * 9 + [1]


def test_where_the_cycles_go():
    made = profiled(files())
    assert (made.bundles, made.cycles) == (11, 47)
    assert made.units["VSTORE"] == 5 / 47 and made.units["MXU"] == 0
    assert {line.line: line.cycles for line in made.lines} == {
        profile.NO_LINE: 42.0, "/home/user/kernel.py:13": 5.0,
    }  # fmt: skip
    text = profile_view.table([made])
    assert "47 cycles of 11 bundles" in text and "hbm_to_vmem 0.006144 MB in 3" in text
    assert "no estimate of seconds: no measured times of a v5e" in text
    assert made.seconds is None and made.error is None


def modelled(monkeypatch, **changed):
    given = {
        "clock": 1e9, "bandwidth": 1e9, "latency": 1e-6, "start": 0.0, "launch": 1e-6,
        "copying": "right to a factor of 9", "computing": None, "mostly_kernels": "", "mixed": "",
    }  # fmt: skip
    monkeypatch.setitem(profile.MODELS, "v5e", profile.Model(**{**given, **changed}))


# After its wait, a turn is where the copy is done that it started: bytes, then latency.
AWAITED = LOOP.replace(
    "0x7   : > {}",
    "0x7   : > { %9 = dma.done.wait (%p1_p0), /*syncflagno=*/%s5_s5, 64 }",
)


def test_an_estimate_stands_with_its_error(monkeypatch):
    modelled(monkeypatch)
    made = profiled(files(text=AWAITED))
    # The bundle that waits is 4 bundles after the one that starts the copy.
    waited = 3 * (2048 + 1000 - 4)
    assert made.elapsed == 47 + waited and made.waited == waited and made.moving == 3 * 2048
    assert made.seconds == pytest.approx(1e-6 + (47 + waited) * 1e-9)
    assert made.bound == "HBM" and made.error == "right to a factor of 9"
    assert [flight.done - flight.issued for flight in made.flights] == [3048.0] * 3
    text = profile_view.table([made])
    assert "right to a factor of 9" in text and "bound by HBM" in text


@pytest.mark.parametrize(
    "changed, bound",
    [
        ({"bandwidth": 1e15, "latency": 1e-5}, "DMA latency"),
        ({"launch": 1.0}, "launch"),
        ({"bandwidth": 1e15, "latency": 0.0, "launch": 0.0}, "compute (latency of instructions)"),
    ],
)
def test_what_bounds_it(monkeypatch, changed, bound):
    modelled(monkeypatch, **changed)
    made = profiled(files(text=AWAITED))
    assert made.bound == bound
    assert (made.seconds is None) is bound.startswith("compute")
    assert (made.error is None) is (made.seconds is None)
    if made.seconds is None:
        assert "bound by compute, and too few" in str(made.unknown)


def test_no_estimate_for_what_talks(monkeypatch):
    modelled(monkeypatch)
    made = profiled(files(text=AWAITED.replace("dma.hbm_to_vmem", "dma.general")))
    assert made.seconds is None and "talks to other devices" in str(made.unknown)
    said = Answer(ACCEPTED, libtpu="9.9", schedule=files(text=AWAITED))
    tpu = tpus.TPUS["v5e"]
    made = profile.profile(Verdict("k", None, "()", "v5e", tpu, said, None, "0.10.2", devices=4))
    assert made.seconds is None and "talks to other devices" in str(made.unknown)


def test_copies_wait_for_one_another():
    engine = copies.Engine(RATES)
    engine.start("a", "dma.hbm_to_vmem", 0, 320, 0.0)
    engine.start("b", "dma.hbm_to_vmem", 1, 320, 5.0)
    assert [(f.begun, f.done) for f in engine.flights] == [(0.0, 120.0), (20.0, 140.0)]
    assert engine.wait("b", 320, 30.0) == 140.0
    assert engine.wait("b", 320, 30.0) == 30.0  # it was awaited
    assert engine.wait("a", None, 130.0) == 130.0
    assert engine.busy == 40.0


def instruction(name, line=None):
    return bundles.BundleInstruction("v1", name, "", line)


def test_busy_units_hold_up_bundles():
    product = instruction("vmatmul.mubr.f32.gmra.mxu0")
    other = instruction("vmatmul.mubr.f32.gmra.mxu1")
    code = [bundles.Bundle(0, (each,), ()) for each in (product, other, product, product)]
    assert issue.issue(code, "v6e").starts == [0.0, 1.0, 8.0, 16.0]
    assert issue.issue(code, "v6e").cycles == 24.0
    transposes = [bundles.Bundle(0, (instruction("vxpose.xlu0.b32.cont"),), ())] * 2
    assert issue.issue(transposes, "v5e").starts == [0.0, 9.0]
    assert issue.issue(transposes, "v6e").starts == [0.0, 4.0]
    adds = [bundles.Bundle(0, (instruction("vadd.f32"),), ())] * 2
    assert issue.issue(adds, "v5e").starts == [0.0, 1.0]


def executed(scalars=None, branches=None, loops=None, copied=None):
    return scalar_unit.Executed(scalars or {}, branches or {}, loops or {}, copied or {})


def ran_with(text, decided):
    return scalar_unit.run(bundles.read(files(text=text)), "v5e", RATES, decided)


ON_DATA = LOOP.replace("BOUND", "%s99_s9").replace(
    "sbr.rel (!%p2_p1) target = $region7",
    'sbr.rel (!%p2_p1) /* loc("/home/user/kernel.py":9:4 to :43) */ target = $region7',
)


def test_a_loop_turns_as_often_as_in_the_run():
    ran = ran_with(ON_DATA, executed(loops={"/home/user/kernel.py:9": [7]}))
    assert ran.counts == [1] + [7] * 9 + [1]
    assert ran.from_run == ("/home/user/kernel.py:9",)
    with pytest.raises(scalar_unit.Unknown, match="aren't those of the run"):
        ran_with(ON_DATA, executed(loops={"/home/user/kernel.py:9": [7, 7]}))
    with pytest.raises(scalar_unit.Unknown, match="kernel.py:9 depends on data"):
        ran_with(ON_DATA, executed(loops={"/home/user/kernel.py:8": [7]}))
    line = "/home/user/kernel.py:9"
    both = executed(loops={line: [7]}, branches={line: [True]})
    with pytest.raises(scalar_unit.Unknown, match="depends on data"):
        ran_with(ON_DATA, both)


def test_what_lies_in_scalar_memory_is_read():
    text = LOOP.replace(
        "%s10_s9 = smov 0 /* copy for cssa */ }",
        "%s10_s9 = smov 0  ;;  %s40_s2 = inlined_call_operand.hbm [shape: s32[8], index: 1, kind: "
        "input]  ;;  %s41_s3 = smov [#allocation3]  ;;  %5 = dma.hbm_to_smem /*hbm=*/%s40_s2, "
        "/*size_in_granules=*/16, /*smem=*/%s41_s3, /*dst_syncflagno=*/[#allocation2]  ;;  "
        "%s42_s8 = sld [smem:[#allocation3 + $0x2]] }",
    ).replace("BOUND", "%s42_s8")
    assert ran_with(text, executed(scalars={1: [9, 9, 6, 9]})).counts[1] == 6
    with pytest.raises(scalar_unit.Unknown):
        ran_with(text, executed(scalars={0: [9, 9, 6, 9]}))


def test_copies_are_checked_against_the_run():
    made = bundles.read(files())
    line = "/home/user/kernel.py:3"
    text = LOOP.replace("%s5_s5 }", f'%s5_s5 /* loc("{line[:-2]}":3:1 to :9) */ }}')
    said = Answer(ACCEPTED, libtpu="9.9", schedule=files(text=text))
    verdict = Verdict("k", None, "()", "v5e", tpus.TPUS["v5e"], said, None, "0.10.2")
    assert made.bundles[3].instructions[0].line is None
    same = profile.profile(verdict, executed(copied={line: (3, 6144)}))
    assert same.checked == (f"{line}: 3 copies of 6,144 bytes, as in the run",)
    other = profile.profile(verdict, executed(copied={line: (4, 8192)}))
    assert other.checked == (f"{line}: 6,144 bytes copied, but 8,192 in the run",)


def test_two_profiles_beside_one_another(tmp_path, capsys):
    from pallas_shim.cli import profile as verb

    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, bound in zip(paths, ("5", "10"), strict=True):
        assert profile_view.write([profiled(files(bound))], path) is None
    assert verb.main(["--compare", *paths]) == 0
    said = capsys.readouterr().out
    assert "cycles of bundles: 47 to 92 (1.96 times)" in said
    assert "MB from and to HBM: 0.006144 to 0.01024" in said
    assert "+5 cycles at /home/user/kernel.py:13" in said
    assert verb.main(["--compare", paths[0]]) == 2
    (tmp_path / "b.json").write_text("[]")
    assert verb.main(["--compare", *paths]) == 2
    assert "is no profile" in capsys.readouterr().err


def test_a_trace(tmp_path, monkeypatch):
    modelled(monkeypatch)
    path = tmp_path / "trace"
    assert profile_view.write([profiled(files(text=AWAITED))], f"perfetto:{path}") is None
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names.count("hbm_to_vmem") == 3 and "turn 1" in names and "wait" in names
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


def test_a_branch_on_data_is_no_guess():
    made = profiled(files(bound="%s99_s9"))
    assert made.cycles is None and made.unknown == "no times: a branch depends on data"
    made = profiled(files(text=LOOP.replace("=*/64", "=*/%s77_s7")))
    assert made.unknown == "no times: the size of a copy depends on data"


def test_a_loop_without_an_end(monkeypatch):
    monkeypatch.setattr(scalar_unit, "_MOST_BLOCKS", 100)
    made = profiled(files(bound="1000"))
    assert "longer than 100 turns" in str(made.unknown)


@pytest.mark.parametrize(
    "changed",
    [
        files(units=UNITS.replace("MXU", "NEW")),
        files(units=UNITS + "0 0 0 0\n"),
        files(text=LOOP.replace("0x6 ", "0x7 ")),
        files(text=LOOP.replace("$region7", "$region8")),
        files(text=LOOP.replace("= $region7", "somewhere")),
    ],
)
def test_another_form_is_no_schedule(changed):
    made = profiled(changed)
    assert made.cycles is None and "no schedule with libtpu 9.9" in str(made.unknown)


def test_a_verdict_without_a_schedule():
    made = profiled(None, unread="no schedule with libtpu 9.9: it has none")
    assert made.unknown == "no schedule with libtpu 9.9: it has none"


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "profile.json"
    assert profile_view.write([profiled(files())], str(path)) is None
    (row,) = json.loads(path.read_text())["profiles"]
    assert row["cycles"] == 47 and row["copies"][0]["times"] == 3
    assert "can't be written" in str(profile_view.write([], str(tmp_path / "no" / "x.json")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pallas_shim[view]" in str(profile_view.write([], str(tmp_path / "x.html")))


def test_one_page_of_html(tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    path = tmp_path / "profile.html"
    made = profiled(files(text=LOOP.replace("/home/user/kernel.py", __file__)))
    assert profile_view.write([made], str(path)) is None
    text = path.read_text()
    assert "def test_one_page_of_html" not in text.split('id="profiles"')[0]
    assert "chip.dumps import Files" in text.split('id="profiles"')[1]  # its source, around line 13
    assert "<script src" not in text and '<link rel="stylesheet' not in text


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_the_page_in_a_browser(tmp_path):
    """Lines, plots and timeline are drawn for each kernel, and nothing is logged."""
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    path = tmp_path / "profile.html"
    text = AWAITED.replace("/home/user/kernel.py", __file__)
    other = profiled(None, unread="no schedule with libtpu 9.9: it has none")
    placed = whole.Placed("f32[8,128]", 4096, "vmem", is_result=False)
    kernel = whole.XlaOperation("call.1", whole.KERNEL, "k", 3, 1e-6, (placed,))
    function = whole.Whole("layer", "v6e", (kernel,), 1e-3, 1e-6, 0.0, "right to a factor of 9")
    made = [profiled(files(text=text)), other]
    assert profile_view.write(made, str(path), [function]) is None
    got = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'user'}", "--enable-logging=stderr",
         "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    plots = got.stdout.split('id="timeline-plot"')[1]
    assert plots.count('class="main-svg"') >= 3 and "turn of the grid" in plots
    assert 'data-ready="yes"' in got.stdout and 'id="lines"' in got.stdout
    assert f"{__file__}" in got.stdout.split('id="lines"')[1]
    assert "from f32[8,128] in VMEM" in got.stdout.split('class="card function"')[1]
    assert "CONSOLE" not in got.stderr
