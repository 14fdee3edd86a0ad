"""python -m pallas_shim doctor: says which packages are here, and whether they work together."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import platform
import runpy
import sys

import pallas_shim
from pallas_shim import discovery, environment, patching, settings

_PACKAGES = ("jax", "jaxlib", "numpy", "wrapt", "importlib-metadata")


def main(arguments: list[str]) -> int:
    """Prints the findings. Returns the exit status: 0 if a kernel runs in NumPy here and scripts
    start as the variables say, else 1."""
    argparse.ArgumentParser(
        prog="pallas_shim doctor",
        description=__doc__,
        epilog="example: python -m pallas_shim doctor",
    ).parse_args(arguments)
    print(f"pallas_shim {pallas_shim.__version__} in {pathlib.Path(pallas_shim.__file__).parent}")
    print(f"Python {platform.python_version()} ({sys.executable})")
    print(_supported())
    try:
        import importlib_metadata
    except ImportError as error:
        print(f"{error}; install importlib-metadata in this environment")
        return 1
    for package in _PACKAGES:
        try:
            print(f"{package} {importlib_metadata.version(package)}")
        except importlib_metadata.PackageNotFoundError:
            print(f"{package} is missing")
    problem, note = _problem(), _note()  # before this process sets PALLAS_NUMPY itself
    for line in [*_startup_files(), *_settings(), *_patches()]:
        print(line)
    print(f"cache: {_cache()}")
    try:
        works, finding = _try_kernel()
    except Exception as error:
        works, finding = False, f"{type(error).__name__}: {error}"
    print(f"a small kernel: {finding}")
    if note is not None:
        print(f"note: {note}")
    if problem is not None:
        print(f"problem: {problem}")
    return 0 if works and problem is None else 1


def _supported() -> str:
    # The package around it can't be imported if this JAX isn't one of them.
    path = pathlib.Path(pallas_shim.__path__[0], "jax_compat", "versions.py")
    known = runpy.run_path(str(path))
    tested = ", ".join(known["TESTED"])
    return (
        f"supported: Python 3.11 and newer; JAX >= {known['OLDEST']}, < {known['TOO_NEW']}"
        f" (all tests run on {tested})"
    )


def _problem() -> str | None:
    """The reason why ``python script.py`` doesn't do what PALLAS_NUMPY asks for."""
    wanted = os.environ.get("PALLAS_NUMPY", "")
    if wanted in ("", "0") or environment.starts_with_python():
        return None
    return (
        f"PALLAS_NUMPY={wanted} is set, but nothing starts the shim in `python script.py` here: "
        "pip install pallas_shim in this environment, or use python -m pallas_shim script.py"
    )


def _note() -> str | None:
    others = [n for n, v in os.environ.items() if n.startswith("PALLAS_NUMPY_") and v]
    if "PALLAS_NUMPY" in os.environ or not others:
        return None
    return (
        f"`python script.py` runs without the shim, because PALLAS_NUMPY isn't set, although "
        f"{', '.join(others)} is"
    )


def _startup_files() -> list[str]:
    found = [
        str(path)
        for directory in dict.fromkeys(sys.path)
        for path in sorted(pathlib.Path(directory).glob("pallas_shim.*"))
        if path.suffix in (".pth", ".start")
    ]
    if environment.starts_with_python():
        how = "active: PALLAS_NUMPY=1 python script.py is enough here"
    elif found:
        how = "not active in this process (another pallas_shim's, or Python ran with -S)"
    else:
        how = "not installed: use python -m pallas_shim script.py"
    return [f"start-up files: {', '.join(found) or 'none'}", f"  {how}"]


def _settings() -> list[str]:
    fields = dataclasses.asdict(settings.current()).items()
    values = ", ".join(
        f"{name}={sorted(value) if isinstance(value, frozenset) else value!r}"
        for name, value in fields
    )
    return [f"settings: {values}"]


def _cache() -> str:
    from pallas_shim.cache import store

    setting = settings.current().cache
    if setting is None:
        return "off, by PALLAS_NUMPY_CACHE=0"
    try:
        found = store.store(setting)
    except store.Refused as error:
        return f"no program is kept: {error}"
    key = f"doctor-{os.getpid()}"
    failure = found.write(key, key.encode())
    if failure is not None:
        return f"programs are read, but none is kept: {failure}"
    back = found.read(key)
    found.remove(key)
    what = "works" if back == key.encode() else "doesn't give back what is written to it"
    return f"{found.directory} {what}"


def _patches() -> list[str]:
    found = discovery.entry_points(patching.GROUP)
    return ["patches:", *(f"  on import of {patch.name}: {patch.value}" for patch in found)]


def _try_kernel() -> tuple[bool, str]:
    patching.activate()
    import jax
    import numpy as np
    from jax.experimental import pallas as pl

    def add_one(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    if not patching.is_active():
        return False, "not tried, the shim is off (see the message above)"
    from pallas_shim.reports.uses import REPORT

    x = np.arange(8.0, dtype=np.float32)
    call = pl.pallas_call(add_one, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))
    right = bool((np.asarray(jax.jit(call)(x)) == x + 1).all())
    row = REPORT.rows()[-1]
    value = "right" if right else "wrong"
    return right and row["rung"] == "numpy", f"rung {row['rung']} ({row['reason']}), {value} values"
