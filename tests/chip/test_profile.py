"""A small program for the scalar unit, written by hand: counts, copies, units, lines."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from pallas_shim.chip import bundles, copies, profile, profile_view, scalar_unit, tpus
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
    assert list(ran.copies.values()) == [
        scalar_unit.Copy("dma.hbm_to_vmem", 3, 3 * 64 * 32)
    ]
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


def test_an_estimate_stands_with_its_error(monkeypatch):
    model = profile.Model(1e9, 1e9, 1e-6, 1e-4, "right to a factor of 9")
    monkeypatch.setitem(profile.MODELS, "v5e", model)
    made = profiled(files())
    assert made.seconds == pytest.approx(1e-4 + 3 * (1e-6 + 2048e-9) + 2 * 9e-9 + 1e-9)
    text = profile_view.table([made])
    assert "right to a factor of 9" in text and "bound by copies" in text
    fast = model._replace(bandwidth=1e15, latency=0.0)
    monkeypatch.setitem(profile.MODELS, "v5e", fast)
    made = profiled(files())
    assert made.seconds is None and "bound by compute" in str(made.unknown)


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
    assert 'id="units0"' in text and 'id="steps0"' in text
    assert "from __future__ import annotations" not in text.split("<h2>")[0]
    assert text.count("http") == text.split("</script>")[0].count("http")  # only in the library


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_the_page_in_a_browser(tmp_path):
    """Its plots are drawn, and nothing is logged."""
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    path = tmp_path / "profile.html"
    assert profile_view.write([profiled(files())], str(path)) is None
    got = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'user'}", "--enable-logging=stderr",
         "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert got.stdout.count('class="main-svg"') >= 2
    assert "CONSOLE" not in got.stderr
