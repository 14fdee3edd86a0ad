"""Reads every PALLAS_NUMPY* variable, once, in one place."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class SettingError(ValueError):
    """A variable has a value that isn't allowed, or isn't one of ours."""


# No loop is worth more.
MOST_THREADS = 64


@dataclass(frozen=True)
class Settings:
    """The user's settings. The defaults are those of unset (or empty) variables.

    force: also take kernels meant for a TPU or GPU that this machine has.
    strict: a kernel that would fall to the `jax` rung is an error, and so is one that the compiler
      refuses for a TPU of ``compile``.
    log: say on stderr how each call runs, as it is decided.
    report: None for no report, "1" for a table on stderr at exit, else the path for a JSON file.
    disabled_passes: names of optimisation passes to leave out.
    tpu: the TPU generation that user code is told it runs on, or None.
    topology: how many chips user code is told there are along each dimension; None: one for each
      device that there is, in a line.
    scope: which jitted functions without a kernel are run here, until they have earned XLA's
      compilation: "all", "exact" (those whose bits are the same), "library" (those of them that
      are JAX's own) or "kernels" (none).
    cache: which programs are kept for later processes: "trace", those of jaxprs, in the directory
      by default; "function", those of functions too; else a directory, for both; None for no cache.
    cache_verify: check each program that is read from the cache.
    verify: check the program of each function after lowering and after each pass.
    compile: the TPUs for which kernels are compiled when the process ends, as "v6e" or "v5e:4x4".
    profile: "1" for a table of where the kernels' time goes on these TPUs, else the paths of files
      for it, too, divided by commas: HTML, JSON, or after "perfetto:" a trace; None for none.
    compile_executor: where they are compiled, see `chip.driver.executor`; None: on this machine.
    dump: the directory to write the programs and the generated code of each function to, or None.
    progress: show how far long grids and loops are; None: on a terminal and in CI.
    check: the kinds of faults for which kernels are checked while they run.
    schedules: in how many orders of programs and copies each call of a kernel runs; 0: in one.
    seed: the order, if it is one, else the seed of the first that is drawn; None for the usual one.
    findings: the directory in which each process puts what checks find; None: stderr, at exit.
    suppressions: the file that names findings that the user doesn't want to see, or None.
    native: programs that have earned it become native code, if llvmlite is installed.
    native_force: all do that can, at their first call, and each run is compared with NumPy's.
    threads: how many threads may share a loop of native code: also no more than OMP_NUM_THREADS
      says, or the process may use cores.
    """

    force: bool = False
    strict: bool = False
    log: bool = False
    report: str | None = None
    disabled_passes: frozenset[str] = frozenset()
    tpu: str | None = None
    topology: tuple[int, ...] | None = None
    scope: str = "library"
    cache: str | None = "trace"
    cache_verify: bool = False
    verify: bool = False
    compile: tuple[str, ...] = ()
    compile_executor: str | None = None
    profile: str | None = None
    dump: str | None = None
    progress: bool | None = None
    check: frozenset[str] = frozenset()
    schedules: int = 0
    seed: str | None = None
    findings: str | None = None
    suppressions: str | None = None
    native: bool = True
    native_force: bool = False
    threads: int = MOST_THREADS

    @property
    def passes_left_out(self) -> frozenset[str]:
        """The disabled passes, and those that would make native code slower if there may be any."""
        may_be_native = self.native and llvm_is_installed()
        return self.disabled_passes | ({"loop_distribution"} if may_be_native else frozenset())

    @property
    def tpu_cores(self) -> int:
        """The TensorCores of a device of the chosen TPU generation; 1 if none is chosen."""
        return TPU_CORES.get(self.tpu or "", 1)


@functools.cache
def llvm_is_installed() -> bool:
    """Whether there is llvmlite, an extra, by which programs become native code."""
    return importlib.util.find_spec("llvmlite") is not None


def _switch(field: str) -> Callable[[str], dict[str, Any]]:
    return lambda value: {field: {"0": False, "1": True}[value]}


def _start(value: str) -> dict[str, Any]:
    # Whether to start at all is asked before this module is imported, in _pallas_shim_start.
    return {"force": {"0": False, "1": False, "force": True}[value]}


def _native(value: str) -> dict[str, Any]:
    force = value == "force"
    return {"native": force or {"0": False, "1": True}[value], "native_force": force}


def _threads(value: str) -> dict[str, Any]:
    if not re.fullmatch(r"[1-9]\d*", value):
        raise KeyError(value)
    return {"threads": min(int(value), MOST_THREADS)}


def _report(value: str) -> dict[str, Any]:
    if value.lower() in ("true", "false", "yes", "no", "on", "off"):  # not meant as a file's name
        raise KeyError(value)
    return {"report": None if value == "0" else value}


def _profile(value: str) -> dict[str, Any]:
    for file in value.split(","):
        known = file.startswith("perfetto:") or file.endswith((".html", ".json"))
        if not known and file != "1" and value != "0":
            raise KeyError(value)
    return {"profile": None if value == "0" else value}


def _tpu(value: str) -> dict[str, Any]:
    name, colon, sizes = value.partition(":")
    if not colon:
        return {"tpu": None if value == "0" else {name: name for name in TPUS}[value]}
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") != TPUS[name] - 1:
        raise KeyError(value)
    return {"tpu": name, "topology": tuple(map(int, sizes.split("x")))}


def _scope(value: str) -> dict[str, Any]:
    return {"scope": {name: name for name in ("kernels", "library", "exact", "all")}[value]}


def _schedules(value: str) -> dict[str, Any]:
    if not value.isdigit():
        raise KeyError(value)
    return {"schedules": int(value)}


def _seed(value: str) -> dict[str, Any]:
    if not re.fullmatch(r"early|late|\d+|choices:(\d+(,\d+)*)?", value):
        raise KeyError(value)
    return {"seed": value}


def _check(value: str) -> dict[str, Any]:
    if value in ("0", "1"):
        return {"check": frozenset(CHECKS if value == "1" else ())}
    return {"check": frozenset({name: name for name in CHECKS}[name] for name in value.split(","))}


def _compile(value: str) -> dict[str, Any]:
    if value == "0":
        return {"compile": ()}
    names = value.split(",")
    for name in names:
        tpu, colon, topology = name.partition(":")
        if tpu not in TPUS or (colon and not re.fullmatch(r"\d+x\d+(x\d+)?", topology)):
            raise KeyError(name)
    return {"compile": tuple(dict.fromkeys(names))}


def _executor(value: str) -> dict[str, Any]:
    if value != "0" and ":" not in value:
        raise KeyError(value)
    return {"compile_executor": None if value == "0" else value}


def _path(field: str) -> Callable[[str], dict[str, Any]]:
    def parse(value: str) -> dict[str, Any]:
        if value == "1":
            raise KeyError(value)
        return {field: None if value == "0" else value}

    return parse


def _passes(value: str) -> dict[str, Any]:
    names = value.split(",")
    if not all(name.startswith("-") for name in names):
        raise KeyError(value)
    for name in names:
        if name[1:] in _RENAMED_PASSES:
            raise SettingError(
                f"PALLAS_NUMPY_PASSES={value!r} isn't allowed; the pass {name[1:]} is called "
                f"{_RENAMED_PASSES[name[1:]]} now"
            )
    return {"disabled_passes": frozenset(_PASSES[name[1:]] for name in names)}


# Each generation of TPUs, and in how many dimensions its chips are connected.
TPUS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "v7x": 3}

# The TensorCores of a device, in generations with several.
TPU_CORES = {"v4": 2, "v5p": 2}

# The kinds of findings of the evaluator, which knows nothing of settings.
CHECKS = ("bounds", "uninitialized", "races", "sync", "blocks")

# The passes of the evaluator, which knows nothing of settings.
PASSES = (
    "batching", "codegen", "common_subexpressions", "constant_folding", "copy_elision",
    "dead_code", "floor_division", "from_end", "gather_to_slice", "grid_batching", "hoisting",
    "in_place", "in_place_recurrences", "loop_distribution", "mask_narrowing", "movements",
    "narrow_products", "one_hot", "select_to_minmax", "store_forwarding", "store_fusion",
    "strength_reduction", "sums_of_products", "wide_products",
)  # fmt: skip
_RENAMED_PASSES = {
    "carried_rows": "in_place_recurrences",
    "direct_stores": "store_fusion",
    "emission": "codegen",
    "extrema": "select_to_minmax",
    "index_arrays": "gather_to_slice",
    "load_views": "copy_elision",
    "truth_values": "mask_narrowing",
    "walks": "strength_reduction",
}
_PASSES = {name: name for name in PASSES}

# variable: (what is allowed, value -> fields of Settings; KeyError for a value that isn't allowed)
_VARIABLES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "PALLAS_NUMPY": ("0, 1 or force", _start),
    "PALLAS_NUMPY_STRICT": ("0 or 1", _switch("strict")),
    "PALLAS_NUMPY_LOG": ("0 or 1", _switch("log")),
    "PALLAS_NUMPY_PROGRESS": ("0 or 1", _switch("progress")),
    "PALLAS_NUMPY_REPORT": ("0, 1 (a table on stderr) or the path for a JSON file", _report),
    "PALLAS_NUMPY_TPU": (
        f"0 or one of {', '.join(TPUS)}, or several as in v5e:2x4 and v4:2x2x1",
        _tpu,
    ),
    "PALLAS_NUMPY_SCOPE": ("kernels, library, exact or all", _scope),
    "PALLAS_NUMPY_PASSES": (
        f"passes to leave out, as in -hoisting,-copy_elision, of {', '.join(PASSES)}",
        _passes,
    ),
    "PALLAS_NUMPY_CACHE": ("0, trace, function or the path of a directory", _path("cache")),
    "PALLAS_NUMPY_CACHE_VERIFY": ("0 or 1", _switch("cache_verify")),
    "PALLAS_NUMPY_VERIFY": ("0 or 1", _switch("verify")),
    "PALLAS_NUMPY_SCHEDULES": ("a number of orders of programs and copies", _schedules),
    "PALLAS_NUMPY_SEED": ("a number; without SCHEDULES also early, late or choices:…", _seed),
    "PALLAS_NUMPY_CHECK": (f"0, 1 or some of {', '.join(CHECKS)}", _check),
    "PALLAS_NUMPY_FINDINGS": ("0 or the path of a directory", _path("findings")),
    "PALLAS_NUMPY_SUPPRESSIONS": ("0 or the path of a TOML file", _path("suppressions")),
    "PALLAS_NUMPY_COMPILE": (
        f"0 or TPUs, as in v6e,v5e:4x4, of {', '.join(TPUS)}",
        _compile,
    ),
    "PALLAS_NUMPY_COMPILE_EXECUTOR": ("0, module:factory, dask:ADDRESS or ray:ADDRESS", _executor),
    "PALLAS_NUMPY_PROFILE": (
        "0, 1, or .html and .json files and perfetto:FILE, divided by commas",
        _profile,
    ),
    "PALLAS_NUMPY_DUMP": ("0 or the path of a directory", _path("dump")),
    "PALLAS_NUMPY_NATIVE": ("0, 1 or force", _native),
    "PALLAS_NUMPY_THREADS": ("a number of threads, 1 or more", _threads),
}


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in a mapping of environment variables.

    Raises:
      SettingError: names the variable, its value, and what is allowed.
    """
    fields: dict[str, Any] = {}
    for name, value in environ.items():
        if not re.match(r"PALLAS_NUMPY(_|$)", name) or not value:
            continue
        if name not in _VARIABLES:
            raise SettingError(
                f"{name} isn't a variable of pallas_shim; these are: {', '.join(_VARIABLES)}"
            )
        allowed, parse = _VARIABLES[name]
        try:
            fields.update(parse(value))
        except KeyError:
            raise SettingError(f"{name}={value!r} isn't allowed; it takes {allowed}") from None
    omp = re.match(r"\s*([1-9]\d*)\s*(,|$)", environ.get("OMP_NUM_THREADS", ""))  # else ill-formed
    if omp is not None:
        fields["threads"] = min(int(omp[1]), fields.get("threads", MOST_THREADS))
    settings = Settings(**fields)
    if settings.schedules and not (settings.seed or "0").isdigit():
        raise SettingError(
            f"PALLAS_NUMPY_SEED={settings.seed!r} is one order, and PALLAS_NUMPY_SCHEDULES="
            f"{settings.schedules} asks for several; unset one, or give a number as the seed"
        )
    return settings


@functools.cache
def current() -> Settings:
    """The settings of this process, read from the environment at the first call."""
    return read(os.environ)
