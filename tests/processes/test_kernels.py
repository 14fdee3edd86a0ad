"""Scripts with kernels, however they are started; and JAX as it was, where that is right."""

from __future__ import annotations

import subprocess

import pytest

from tests.processes.conftest import CHECKOUT, rows_of

KERNEL = """
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

def double(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2

def run():
    x = jnp.arange(8.0)
    call = pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)
    return int(jax.jit(call)(x).sum())

if __name__ == "__main__":
    print(run())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text(KERNEL)
    return path


def rungs(report) -> list[tuple[str, str]]:
    return [(row["name"], row["rung"]) for row in rows_of(report)]


def test_a_script(python, script, tmp_path):
    report = tmp_path / "report.json"
    got = python.run(script, PALLAS_NUMPY="1", PALLAS_NUMPY_REPORT=str(report))
    assert (got.returncode, got.stdout, got.stderr) == (0, "56\n", "")
    assert rungs(report) == [("double", "numpy")]

    shown = python.run("-m", "pallas_shim", "report", report)
    assert shown.returncode == 0 and "numpy" in shown.stdout and "kernel.py" in shown.stdout


def test_the_command(python, script, tmp_path):
    options = ["--strict", "--report=r.json"]
    got = python.run("-m", "pallas_shim", *options, "-m", "kernel", cwd=tmp_path)
    assert (got.returncode, got.stdout, got.stderr) == (0, "56\n", "")
    assert rungs(tmp_path / "r.json") == [("double", "numpy")]


def test_run_unmodified_with_another_pythons_environment(bare, script, tmp_path):
    report = tmp_path / "report.json"
    variables = {"PYTHON": bare.executable, "PALLAS_NUMPY_REPORT": str(report)}
    got = subprocess.run(
        [CHECKOUT / "scripts" / "run_unmodified.sh", script.name],
        cwd=tmp_path,
        env=bare.environment(**variables),
        capture_output=True,
        text=True,
    )
    assert (got.returncode, got.stdout, got.stderr) == (0, "56\n", "")
    assert rungs(report) == [("double", "numpy")]


def test_jax_is_put_back_exactly(python, tmp_path):
    code = """if True:
        import sys
        import jax, jax.numpy as jnp
        from jax.experimental import pallas as pl
        import jax.experimental.pallas.tpu
        import pallas_shim
        from kernel import run

        def everything():
            return {
                (name, key): id(value)
                for name, module in sys.modules.items() if name.split(".")[0] in ("jax", "jaxlib")
                for key, value in vars(module).items()
            }

        run()
        with pallas_shim.active():
            run()  # imports what JAX imports lazily
        before = everything()
        pallas_shim.activate()
        during = everything()
        assert during != before
        assert run() == 56
        pallas_shim.deactivate()
        changed = {key for key, value in everything().items() if before.get(key, value) != value}
        assert not changed, changed
        assert run() == 56
        from pallas_shim.reports.uses import REPORT
        print([row["calls"] for row in REPORT.rows()])
    """
    (tmp_path / "kernel.py").write_text(KERNEL)
    got = python.run("-c", code, cwd=tmp_path, PALLAS_NUMPY="0")
    assert (got.returncode, got.stderr) == (0, "")
    assert got.stdout == "[2]\n"


def test_doctor(from_wheel):
    got = from_wheel.run("-m", "pallas_shim", "doctor")
    assert (got.returncode, got.stderr) == (0, "")
    assert "a small kernel: rung numpy" in got.stdout
    assert "patches:patch_pallas" in got.stdout and "PALLAS_NUMPY=1 python" in got.stdout
    assert "supported: Python 3.11 and newer; JAX >= 0.8.0, < 0." in got.stdout
    assert "PALLAS_NUMPY isn't set, although PALLAS_NUMPY_" in got.stdout


def test_doctor_finds_the_variable_without_the_shim(bare):
    variables = {"PALLAS_NUMPY": "1", "PYTHONPATH": str(CHECKOUT)}
    got = bare.run("-m", "pallas_shim", "doctor", **variables)
    assert got.returncode == 1 and "a small kernel: rung numpy" in got.stdout
    assert "problem: PALLAS_NUMPY=1 is set, but nothing starts the shim" in got.stdout


OLD = {
    "jax/__init__.py": "__version__ = '0.4.1'",
    "jax/experimental/__init__.py": "",
    "jax/experimental/pallas.py": "",
}
IMPORTS = "from jax.experimental import pallas; print('ran')"


@pytest.fixture
def old_jax(tmp_path):
    for name, text in OLD.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


def test_a_jax_that_is_too_old(from_wheel, old_jax):
    got = from_wheel.run("-c", IMPORTS, PALLAS_NUMPY="1", PYTHONPATH=old_jax)
    assert (got.returncode, got.stdout) == (0, "ran\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and "JAX 0.4.1" in line and "0.8.0" in line


def test_a_jax_that_lacks_an_internal(from_wheel, script):
    code = f"""if True:
        import jax
        import jax._src.lax.linalg
        del jax._src.lax.linalg._symmetric_product_jax_fn
        exec(open({str(script)!r}).read())
    """
    got = from_wheel.run("-c", code, PALLAS_NUMPY="1")
    assert (got.returncode, got.stdout) == (0, "56\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and "linalg._symmetric_product_jax_fn" in line


@pytest.mark.parametrize("missing", ["jax", "jaxlib", "numpy"])
def test_a_half_installed_jax_fails_as_ever(bare, from_wheel, script, tmp_path, missing):
    (tmp_path / "absent").mkdir()
    error = f"No module named '{missing}'"
    (tmp_path / "absent" / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError({error!r}, name={missing!r})"
    )
    path = {"PYTHONPATH": str(tmp_path / "absent")}
    want = bare.run(script, **path)
    got = from_wheel.run(script, PALLAS_NUMPY="1", **path)
    assert want.returncode == got.returncode != 0
    assert error in got.stderr and got.stderr.splitlines()[-1] == want.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "first",
    [
        "import jax.experimental.pallas.tpu",
        "from jax.experimental.pallas import triton",
        "import jax._src.pallas.pallas_call",
        "import pallas_shim.evaluator.rules",
    ],
)
def test_whatever_is_imported_first(from_wheel, script, tmp_path, first):
    script.write_text(f"{first}\n{KERNEL}")
    report = tmp_path / "report.json"
    got = from_wheel.run(script, PALLAS_NUMPY="1", PALLAS_NUMPY_REPORT=str(report))
    assert (got.returncode, got.stdout, got.stderr) == (0, "56\n", "")
    assert rungs(report) == [("double", "numpy")]
