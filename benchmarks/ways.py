"""The ways in which each kernel is run. A user could pick any of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib

STARTUP = pathlib.Path(__file__).parents[1] / "sitecustomize_pkg"


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run a kernel.

    title: its name in the tables.
    interpret: the name of the value that pallas_call gets as ``interpret``. None: what the kernel
        says. The function cache needs that: it keeps no function once somebody has replaced
        pallas_call, as the other ways do.
    shim: whether the kernel runs under the shim, or on stock JAX.
    cache: the environment variable that names a cache directory. It gets the kernel's own
        directory, which a first, unmeasured process fills.
    stages: whether to measure the steps of the shim's first call instead.
    settles: the processor's seconds for which it is called before its warm calls are measured.
        Otherwise nothing becomes native code.
    """

    title: str
    interpret: str | None = "True"
    shim: bool = False
    cache: str | None = None
    stages: bool = False
    settles: float = 0.0

    def environment(self, cache: pathlib.Path) -> dict[str, str]:
        """The environment of a process that runs a kernel in this way."""
        path = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        ours = ("PALLAS_NUMPY", "JAX_", "PYTHONDONTWRITEBYTECODE")
        own = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
        own |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_TRACEBACK_FILTERING": "remove_frames",  # an error then ends with its message
            "PYTHONPATH": os.pathsep.join(path),
            "PALLAS_NUMPY": "1" if self.shim else "0",
        }
        if self.shim:
            own["PALLAS_NUMPY_STRICT"] = "1"
            if not self.settles and "PALLAS_NUMPY_NATIVE" in SETTINGS:
                own["PALLAS_NUMPY_NATIVE"] = "0"  # as without the extra
        if self.cache is not None:
            own[self.cache] = str(cache)
        if self.cache == JAX_CACHE:
            own["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            own["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        elif self.cache == HOME_OF_CACHES:
            own[SHIM_CACHE] = "trace"
        elif self.shim and SHIM_CACHE in SETTINGS and self.cache is None:
            own[SHIM_CACHE] = "0"
        return own


JAX_CACHE, SHIM_CACHE = "JAX_COMPILATION_CACHE_DIR", "PALLAS_NUMPY_CACHE"
HOME_OF_CACHES = "XDG_CACHE_HOME"
SETTINGS = (STARTUP.parent / "pallas_shim" / "settings.py").read_text()

# The ways, in the order in which they take turns.
WAYS: dict[str, Way] = {
    "stock": Way("interpret=True"),
    "stock_cached": Way("interpret=True, JAX's cache warm", cache=JAX_CACHE),
    "tpu_interpreter": Way("InterpretParams", interpret="InterpretParams"),
    "stages": Way("the steps of the first call", stages=True),
    "shim": Way("shim", shim=True),
    # Programs that run often become native code meanwhile, with the extra.
    "shim_settled": Way("shim, after 6 seconds", shim=True, settles=6.0),
}
if SHIM_CACHE in SETTINGS:
    WAYS["shim_cached"] = Way(
        "shim, its function cache warm", interpret=None, shim=True, cache=SHIM_CACHE
    )
    WAYS["shim_second"] = Way("shim, a second process", shim=True, cache=HOME_OF_CACHES)
