"""Without libtpu: what JAX's own lowering says, of kernels in every form."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.chip import api, session, verdicts
from pallas_shim.chip.jobs import LOWERING, NO_VERDICT, REFUSED
from pallas_shim.jax_compat import export_tpu
from pallas_shim.jax_compat.hooks import tpu_info
from tests.chip.kernels import FORMS, added, bad_blocks, shape


@pytest.fixture(autouse=True)
def without_libtpu(monkeypatch):
    monkeypatch.setattr(session, "libtpu_version", lambda: None)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_lowered(shim, form):
    function, args = FORMS[form]()
    found = api.verdicts(function, *args, tpu=["v5e", "v6e"])
    assert found and {v.answer.outcome for v in found} == {verdicts.LOWERED}
    assert {v.target for v in found} == {"v5e", "v6e"}


@pytest.mark.parametrize("form", ["scalar_prefetch", "compiler_params", "ring"])
def test_a_kernel_with_an_empty_body_is_lowered(shim, form):
    function, args = FORMS[form]()
    (site,) = api.kernels(function, *args)
    sizes = [
        len(export_tpu.exported(each, "TPU v6 lite", 1).serialize())
        for each in (site, export_tpu.hollow(site))
    ]
    assert sizes[0] > sizes[1] > 1000


def test_a_refusal_is_in_jaxs_words_with_the_users_line(shim):
    found, lowered = (
        api.verdicts(call, argument, tpu="v6e")[0]
        for call, argument in ((bad_blocks(), shape(500, 300)), (added(), shape(512, 256)))
    )
    answer = found.answer
    assert (answer.outcome, answer.stage) == (REFUSED, LOWERING)
    assert "divisible by 8 and 128" in str(answer.message) and "kernels.py:" in str(answer.message)
    assert found.kernel == "add_one" and "kernels.py:" in str(found.source)
    text = verdicts.text([found.row(), lowered.row()])
    assert "v6e: add_one" in text and "refused by JAX's lowering" in text
    assert "pip install 'pallas_shim[tpu]'" in text and "1 refused" in text


def test_a_primitive_that_no_tpu_has(shim):
    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.sort(x_ref[...], axis=0)

    call = pl.pallas_call(kernel, out_shape=shape(8, 128), interpret=True)
    (found,) = api.verdicts(call, shape(8, 128), tpu="v5e")
    assert found.answer.stage == LOWERING and "sort" in str(found.answer.message)


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="JAX lowers it to nothing")
def test_a_core_map_without_refs_is_refused_as_in_a_program(shim):
    mesh = pltpu.create_tensorcore_mesh("core", num_cores=1)

    def function(x):
        def body(_):
            pl.core_map(mesh)(lambda: None)

        return pl.run_state(body)(x)

    (found,) = api.verdicts(function, shape(8, 128), tpu="v5e")
    assert (found.answer.outcome, found.answer.stage) == (REFUSED, LOWERING)
    assert "without discharging" in str(found.answer.message)


def test_the_lowering_knows_the_generation_asked_for(shim):
    """A block of one dimension has to be a multiple of a tile, which the generation decides."""

    def lowered(size):
        block = pl.BlockSpec((size,), lambda i: (i,))
        call = pl.pallas_call(
            lambda x_ref, o_ref: o_ref.__setitem__(..., x_ref[...]), grid=(4,),
            in_specs=[block], out_specs=block, out_shape=shape(4 * size), interpret=True,
        )  # fmt: skip
        return {
            v.target: v.answer.outcome for v in api.verdicts(call, shape(4 * size), tpu=["v5e"])
        }

    assert lowered(1024) == {"v5e": verdicts.LOWERED}
    assert lowered(96) == {"v5e": REFUSED}


def test_the_device_is_a_cpu_again_afterwards(shim):
    module = tpu_info._module()
    before = {name: value for name, value in vars(module).items() if callable(value)}
    api.verdicts(bad_blocks(), shape(500, 300), tpu="v6e")
    api.verdicts(added(), shape(512, 256), tpu="v5p")
    after = {name: value for name, value in vars(module).items() if callable(value)}
    assert before == after
    if hasattr(module, "get_tpu_info"):
        with pytest.raises(Exception, match="cpu"):
            module.get_tpu_info()


def test_equal_kernels_are_compiled_once(shim):
    def function(x):
        for _ in range(3):
            x = added()(x)
        return jnp.sin(added()(x))

    assert len(api.kernels(function, shape(512, 256))) == 1
    both = api.kernels(lambda x, y: (added()(x), bad_blocks()(y)), shape(512, 256), shape(500, 300))
    assert len(both) == 2


def test_a_kernel_for_a_gpu_is_no_kernel_for_a_tpu(shim):
    from jax.experimental.pallas import triton

    call = added(interpret=True, compiler_params=triton.CompilerParams(num_warps=4))
    (found,) = api.verdicts(call, shape(512, 256), tpu="v6e")
    assert found.answer.outcome == NO_VERDICT and "GPU" in str(found.answer.message)


def test_an_error_that_is_not_the_lowerings_is_no_refusal(shim, monkeypatch):
    def broken(*_):
        raise ValueError("ours")

    monkeypatch.setattr(session.export_tpu, "exported", broken)
    (found,) = api.verdicts(added(), shape(512, 256), tpu="v6e")
    assert found.answer.outcome == NO_VERDICT and "ours" in str(found.answer.message)


def test_64_bits_stay_what_they_were_traced_as(shim):
    with jax.enable_x64(True):
        call = pl.pallas_call(
            lambda x_ref, o_ref: o_ref.__setitem__(..., x_ref[...] + 1),
            out_shape=shape(8, 128, dtype=np.int64), interpret=True,
        )  # fmt: skip
        (site,) = api.kernels(call, shape(8, 128, dtype=np.int64))
    module = export_tpu.exported(site, "TPU v6 lite", 1)
    assert [aval.dtype for aval in module.in_avals] == [np.int64]


def test_the_row_of_a_report_is_json(shim):
    (found,) = api.verdicts(bad_blocks(), shape(500, 300), tpu="v6e")
    row = json.loads(json.dumps(found.row()))
    assert (row["outcome"], row["tpu"], row["jax"]) == (REFUSED, "v6e", jax.__version__)
    assert row["operands"] == "(f32[500,300])"
