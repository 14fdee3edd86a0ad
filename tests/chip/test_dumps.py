"""What libtpu's dumps say, and that a form which isn't known is refused."""

from __future__ import annotations

import pytest

from pallas_shim.chip import dumps

ALLOCATIONS = """
  #allocation0 [shape = 'u32[]', space=smem, size = 0x4, offset = 0x4, fixed_abs, tag = 'core index']
  #allocation1 [shape = 'u32[8,128]{1,0:T(1,128)}', space=vmem, size = 0x1000, scoped, tag = 'internal scratch']
  %s1 = inlined_call_operand.hbm [shape: f32[8,128], index: 0, kind: input]
  region {
    #allocation2 [shape = 'u8[8192]{0}', space=vmem, size = 0x2000, scoped, tag = 'input window allocation for operator input 0. The window shape is f32[8,128], while']
    #allocation3 [shape = 's32[2]{0}', space=sflag, size = 0x8, scoped, tag = 'scoped memory for call.1']
    %s2 = smov 0
  }
  region {
    #allocation4 [shape = 'u8[4096]{0}', space=vmem, size = 0x1000, scoped, tag = 'scratch operand']
    %s3 = smov 0
  }
"""  # noqa: E501
UTILIZATION = """== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    2     2     4     2     1     3     3     2     2     2
== UTILIZATION:
0 0 0 0 0 0 0 0 0 1
0 0 2 0 0 1 0 0 3 0
"""
BUNDLES = """
     0   :  { %s1 = smov 0 }
   0x1   : > { %1 = vst.msk [vmem:[%s2] sm:$0x1] %vm1, %v3 /* loc("/home/user/kernel.py":13:21 to :78) */ ;; %v5 = vrot.lane.b32.xlu0 %v4, 1 /* loc("/home/user/kernel.py":14:2 to :8) */ }
   0x2   :  { %v6 = vrot.lane.b32.xlu0 %v5, 1 }
"""  # noqa: E501
FILES = dumps.Files(ALLOCATIONS, UTILIZATION, BUNDLES)


def test_memory_at_its_peak():
    """Scopes that follow one another share their memory; what has a fixed address isn't counted."""
    found = dumps.allocations(FILES)
    assert [(a.space, a.size, a.what) for a in found] == [
        ("vmem", 0x2000, "input window allocation for operator input 0"),
        ("vmem", 0x1000, "internal scratch"),
        ("sflag", 8, "scoped memory for call.1"),
    ]


def test_units():
    units = dumps.utilization(FILES)
    assert units.capacity["VALU"] == 4 and len(units.bundles) == 2
    assert units.total("VSTORE:SPILL") == 3 and units.total("NO SUCH") == 0


def test_warnings_name_the_users_lines():
    assert dumps.warnings(FILES) == (
        "1 masked stores: 1 at /home/user/kernel.py:13",
        "2 rotations and permutations: 1 at /home/user/kernel.py:14, 1 at no line",
    )


@pytest.mark.parametrize(
    "text",
    ["", "== CAPACITY:\n", UTILIZATION.replace("== CAP", "== Cap"),
     UTILIZATION.replace("MXU", "NEW"), UTILIZATION + "1 2 3\n",
     UTILIZATION.replace("2     2\n", "2\n")],
)  # fmt: skip
def test_another_form_of_units_is_unreadable(text):
    with pytest.raises(dumps.UnreadableDump, match="another form"):
        dumps.utilization(FILES._replace(utilization=text))


def test_another_form_of_memory_is_unreadable():
    text = ALLOCATIONS.replace("shape =", "type =")
    with pytest.raises(dumps.UnreadableDump, match="another form"):
        dumps.allocations(FILES._replace(allocations=text))


def test_the_files_of_a_kernel(tmp_path):
    names = {
        "1-call.1-00-pre-finalize-registers-and-allocations.txt": ALLOCATIONS,
        "1-call.1-01-final_hlo-static-per-bundle-utilization.txt": UTILIZATION,
        "1-call.1-02-schedule-analysis_final_bundles.txt": "no",
        "1-call.1-03-final_bundles.txt": BUNDLES,
        "1-call.10-03-final_bundles.txt": "another",
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    assert dumps.read(str(tmp_path), "call.1") == FILES
    with pytest.raises(dumps.UnreadableDump, match="no .*allocations"):
        dumps.read(str(tmp_path), "call.10")


def test_the_kernels_of_a_compiled_module():
    hlo = """
  %fusion = f32[8] fusion(%x), kind=kLoop
  ROOT %call.1 = (f32[8]) custom-call(%x), custom_call_target="tpu_custom_call", backend_config={}
  %other = f32[8] custom-call(%x), custom_call_target="Sharding"
"""
    assert dumps.kernels(hlo) == ["call.1"]
