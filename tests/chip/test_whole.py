"""Functions that are compiled as a whole: XLA's program is read, and its parts get their times."""

from __future__ import annotations

import json

import pytest

from pallas_shim.chip import (
    bundles,
    dumps,
    hlo,
    jobs,
    profile_view,
    scalar_unit,
    tpus,
    whole,
)
from pallas_shim.chip.model import MODELS, rates
from tests.chip.test_profile import ON_DATA, files

MODEL = MODELS["v6e"]
# A function of a copy to VMEM, a loop of a kernel and an operation, and a sum.
PROGRAM = """
HloModule jit_call, is_scheduled=true

%fused (p: f32[1024,512]) -> f32[1024,512] {
  ROOT %add.1 = f32[1024,512]{1,0:T(8,128)} add(%p, %p)
}

%body (arg: (s32[], f32[1024,512], f32[1024,512])) -> (s32[], f32[1024,512], f32[1024,512]) {
  %arg = (s32[]{:T(128)}, f32[1024,512]{1,0:T(8,128)S(1)}, f32[1024,512]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %one = s32[]{:T(128)} constant(1), metadata={op_name="jit(call)/call_exported"}
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[1024,512]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %closed_call.4 = f32[1024,512]{1,0:T(8,128)S(1)} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(call)/call_exported/jit(call)/while/body/pallas_call"}, backend_config={"custom_call_config":{"body":"abc"}}
  %y = f32[1024,512]{1,0:T(8,128)} fusion(%closed_call.4), kind=kLoop, calls=%fused, metadata={op_name="jit(call)/call_exported/jit(call)/while/body/tanh"}, backend_config={"window_config":{"estimated_cycles":"9000"}}
  ROOT %out = (s32[]{:T(128)}, f32[1024,512]{1,0}, f32[1024,512]{1,0}) tuple(%next, %y, %y)
}

%condition (arg.1: (s32[], f32[1024,512], f32[1024,512])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[1024,512]{1,0}, f32[1024,512]{1,0}) parameter(0)
  %five = s32[]{:T(128)} constant(5)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %five), direction=LT
}

ENTRY %main (a: f32[1024,512]) -> f32[1024,512] {
  %a = f32[1024,512]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %copy-start = (f32[1024,512]{1,0:T(8,128)S(1)}, f32[1024,512]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = f32[1024,512]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %tuple.2 = (s32[]{:T(128)}, f32[1024,512]{1,0}, f32[1024,512]{1,0}) tuple(%start, %copy-done, %a)
  %while.1 = (s32[]{:T(128)}, f32[1024,512]{1,0}, f32[1024,512]{1,0}) while(%tuple.2), condition=%condition, body=%body
  %z = f32[1024,512]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  ROOT %dot = f32[1024,512]{1,0:T(8,128)} convolution(f32[1024,512]{1,0:T(8,128)} %z, %a), dim_labels=bf_io->bf, metadata={op_name="jit(call)/call_exported/jit(call)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1755"}}
}
"""  # noqa: E501
BYTES = 1024 * 512 * 4


def answer(text=PROGRAM, kernels=("closed_call.4",), **schedules):
    found = {name: schedules.get(name, files()) for name in kernels}
    return jobs.Answer(jobs.ACCEPTED, libtpu="9.9", schedule=dumps.Compiled(text, found))


def read(text=PROGRAM, tpu="v6e", **given):
    return whole.whole("layer", tpus.target(tpu), answer(text, **given))


def turns_of(text):
    module = hlo.read(text)
    where = module.computations[module.entry]
    return hlo.turns(module, where, where["while.1"])


def test_where_values_lie():
    module = hlo.read(PROGRAM)
    body = module.computations["body"]
    assert body["closed_call.4"].arrays == (hlo.Array("f32[1024,512]", BYTES, "vmem"),)
    assert [a.space for a in body["arg"].arrays] == ["hbm", "vmem", "hbm"]
    assert module.computations["main"]["dot"].operands == ("z", "a")
    assert body["closed_call.4"].is_kernel and not body["y"].is_kernel


@pytest.mark.parametrize(
    "old, new, turns",
    [
        ("constant(5)", "constant(7)", 7),
        ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(2)", 3),
        ("constant(5)", "constant(-5)", 0),
        ("direction=LT", "direction=NE", None),
        ("%next = s32[]{:T(128)} add(%i, %one)", "%next = s32[]{:T(128)} add(%i, %i)", None),
        ("constant(1)", "constant(2)", None),
        ("%five = s32[]{:T(128)} constant(5)", "%five = s32[]{:T(128)} parameter(1)", None),
        ("copy(%zero)", "add(%zero, %zero)", None),
    ],
)
def test_the_turns_of_a_loop(old, new, turns):
    assert turns_of(PROGRAM) == 5
    assert old in PROGRAM and turns_of(PROGRAM.replace(old, new)) == turns


def test_what_takes_how_long():
    made = read()
    ran = scalar_unit.run(bundles.read(files()), "v6e", rates("v6e"))
    assert [(o.name, o.opcode, o.times) for o in made.operations] == [
        ("copy-done", "copy-done", 1), ("closed_call.4", "kernel", 5), ("y", "fusion", 5),
        ("dot", "convolution", 1),
    ]  # fmt: skip
    copied, kernel, streamed, dot = (o.seconds for o in made.operations)
    # The whole copy is waited for; the fusion reads from VMEM and writes to HBM.
    assert copied == pytest.approx(BYTES / MODEL.bandwidth)
    assert kernel == pytest.approx(5 * ran.cycles / MODEL.clock)
    assert streamed == pytest.approx(5 * BYTES / MODEL.bandwidth)
    assert dot == pytest.approx(1755 / MODEL.clock)
    assert made.kernels == kernel
    assert made.around == pytest.approx(copied + streamed + dot)
    assert made.seconds == pytest.approx(kernel + made.around + MODEL.launch)
    assert made.error is not None and made.error.startswith(MODEL.mixed)
    assert "most of this one is the launch" in made.error
    assert [o.origin for o in made.operations[1:]] == [
        "while/body/pallas_call", "while/body/tanh", "dot_general",
    ]  # fmt: skip


def test_the_error_is_that_of_such_functions(monkeypatch):
    monkeypatch.setitem(MODELS, "v6e", MODEL._replace(launch=0.0))
    assert read().error == MODEL.mixed
    monkeypatch.setitem(MODELS, "v6e", MODEL._replace(launch=0.0, bandwidth=1e18))
    line = next(line for line in PROGRAM.splitlines() if "%dot =" in line)
    text = PROGRAM.replace(line, line.replace("1755", "17"))
    assert read(text).error == MODEL.mostly_kernels


def test_what_runs_while_a_copy_is_under_way_hides_it():
    moved = PROGRAM.replace("  %copy-done = ", "  MARK\n  %copy-done = ")
    slow = '%busy = f32[1024,512]{1,0} convolution(%a, %a), backend_config={"estimated_cycles":"C"}'
    for cycles, left in ((1000, BYTES / MODEL.bandwidth - 1000 / MODEL.clock), (1_000_000, None)):
        made = read(moved.replace("MARK", slow.replace('"C"', f'"{cycles}"')))
        found = {o.name: o.seconds for o in made.operations}
        assert found.get("copy-done") == (None if left is None else pytest.approx(left))


def test_only_the_slice_of_an_update_in_place_moves():
    text = PROGRAM.replace(
        "ROOT %dot", "%part = f32[8,512]{1,0} parameter(1)\n  %index = s32[] parameter(2)\n  "
        "%updated = f32[1024,512]{1,0} dynamic-update-slice(%z, %part, %index)\n  ROOT %dot"
    )  # fmt: skip
    found = {o.name: o.seconds for o in read(text).operations}
    assert found["updated"] == pytest.approx(2 * 8 * 512 * 4 / MODEL.bandwidth)
    # A fusion with one in it isn't a stream of its arrays, so XLA's cycles hold.
    found = {o.name: o.seconds for o in read(PROGRAM.replace(
        "ROOT %add.1 = f32[1024,512]{1,0:T(8,128)} add", "ROOT %add.1 = f32[1024,512] dynamic-slice"
    )).operations}  # fmt: skip
    assert found["y"] == pytest.approx(5 * 9000 / MODEL.clock)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("direction=LT", "direction=NE", "closed_call.4: data decides how often it runs"),
        ('"body":"abc"', '"body":"abcd"', None),
        (
            "%dot = f32[1024,512]{1,0:T(8,128)} convolution(f32[1024,512]{1,0:T(8,128)} %z, %a), ",
            '%dot = f32[1024,512]{1,0} custom-call(%z), custom_call_target="Something", ',
            None,
        ),
        ("ENTRY %main", "%main", "no program with libtpu 9.9: XLA's program has another form"),
        ("body=%body", "body=%nothing", "no program with libtpu 9.9: KeyError('nothing')"),
        (
            "ROOT %add.1 = f32[1024,512]{1,0:T(8,128)} add(%p, %p)",
            'ROOT %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"',
            "y: XLA runs a kernel as a part of it",
        ),
    ],
)
def test_what_is_not_known(old, new, said):
    assert old in PROGRAM
    made = read(PROGRAM.replace(old, new))
    assert (made.seconds is None) is (said is not None)
    assert (made.error is None) is (made.seconds is None)
    assert said is None or said in str(made.unknown)


def test_a_call_of_xlas_without_a_time():
    text = PROGRAM.replace(
        "ROOT %dot", '%called = f32[1024,512]{1,0} custom-call(%z), custom_call_target="Sort"\n'
        '  %room = f32[1024,512]{1,0} custom-call(), custom_call_target="AllocateBuffer"\n'
        "  ROOT %dot"
    )  # fmt: skip
    made = read(text)
    assert made.seconds is None and "called: XLA says no time of it" in str(made.unknown)
    assert "room" not in {o.name for o in made.operations}


def test_a_branch_of_xlas():
    text = PROGRAM.replace(
        "ROOT %dot", "%either = f32[1024,512]{1,0} conditional(%zero, %z, %z), "
        "branch_computations={%fused, %fused}\n  ROOT %dot"
    )  # fmt: skip
    made = read(text)
    assert made.seconds is None and "add.1: data decides how often" in str(made.unknown)


def test_equal_kernels_are_compiled_once():
    """The second has no schedule of its own."""
    line = next(line for line in PROGRAM.splitlines() if "closed_call.4 =" in line)
    other = line.replace("closed_call.4 =", "closed_call.5 =")
    same = read(PROGRAM.replace(line, f"{line}\n{other}"))
    kernels = [o for o in same.operations if o.is_kernel]
    assert len(kernels) == 2 and kernels[0].seconds == kernels[1].seconds
    differs = read(PROGRAM.replace(line, f"{line}\n{other.replace('abc', 'xyz')}"))
    assert differs.seconds is None and "closed_call.5: there is no schedule" in str(differs.unknown)


def test_what_the_run_decided_and_the_users_names():
    place = " inlined_call_operand.smem [shape: s32[8], index: 0, kind: input] "
    text = ON_DATA.replace("= smov 0", f"= {place.strip()} ;; %s10_s9 = smov 0", 1)
    given = {"closed_call.4": files(text=text)}
    assert "closed_call.4: a branch" in str(read(**given).unknown)
    executed = scalar_unit.Executed({}, {}, {"/home/user/kernel.py:9": [7]}, {})
    asked = []

    def known(types):
        asked.append(types)
        return whole.KnownKernel("scale_kernel", ("x_ref", "o_ref"), executed)

    made = whole.whole("layer", tpus.target("v6e"), answer(**given), known)
    assert asked == [("f32[1024,512]", "f32[1024,512]")] and made.seconds is not None
    (kernel,) = (o for o in made.operations if o.is_kernel)
    assert kernel.origin == "scale_kernel"
    assert [p.text() for p in kernel.placed] == [
        "x_ref f32[1024,512] in SMEM", "o_ref f32[1024,512] in VMEM",
    ]  # fmt: skip


def test_no_estimate_of_another_tpu():
    made = read(tpu="v5e")
    assert made.seconds is None and "no measured times of a v5e" in str(made.unknown)
    assert all(o.seconds is None for o in made.operations)
    assert [o.placed[0].space for o in made.operations if o.is_kernel] == ["vmem"]


def test_long_lines_lose_their_middles_and_kernels_their_code():
    constant = f'  %c = f32[9]{{0}} constant({{{"1, " * 4000}}}), metadata={{op_name="x"}}'
    text = dumps.without_long_lines(f"{PROGRAM}{constant}")
    assert "..." in text and text.endswith('op_name="x"}') and len(text) < 20_000
    assert '"body":"abc"' not in text and '"body":"' in text
    assert text == dumps.without_long_lines(f"{PROGRAM}{constant}")


def test_the_views(tmp_path):
    made = [read(), read(tpu="v5e")]
    text = profile_view.functions_table(made)
    assert "v6e: layer" in text and MODEL.mixed in text
    assert "kernel closed_call.4 5 times" in text and "from f32[1024,512] in VMEM" in text
    assert "no measured times of a v5e" in text
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, cycles in zip(paths, ("1755", "1755000"), strict=True):
        found = [read(PROGRAM.replace('"1755"', f'"{cycles}"'))]
        assert profile_view.write([], str(path), found) is None
    before, after = (json.loads(path.read_text()) for path in paths)
    (row,) = before["functions"]
    assert row["operations"][1]["placed"][0]["space"] == "vmem" and 0 < row["share"] < 1
    said = profile_view.compared(before, after)
    assert "the whole function layer" in said and "ms of XLA's operations: " in said
    assert MODEL.mixed in said
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    assert profile_view.write([], str(tmp_path / "x.html"), made) is None
    page = (tmp_path / "x.html").read_text()
    assert "kernel closed_call.4" in page and "the whole function, as XLA compiles it" in page
