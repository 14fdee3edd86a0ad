"""IPython: ``%load_ext pallas_shim``, ``%pallas_numpy`` and ``%%pallas_report``."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

import pallas_shim
from pallas_shim import patching, settings
from pallas_shim.check import handover
from pallas_shim.plugins.recording import Recording


@magics_class
class PallasMagics(Magics):
    @line_magic
    def pallas_numpy(self, line: str) -> None:
        """``%pallas_numpy on``, ``off`` or ``status``: whether Pallas kernels run in NumPy."""
        what = line.strip() or "status"
        if what not in ("on", "off", "status"):
            raise UsageError(f"%pallas_numpy takes on, off or status, not {what}")
        if what != "status":
            (patching.activate if what == "on" else patching.deactivate)()
        print(_status())

    @cell_magic
    def pallas_report(self, line: str, cell: str) -> None:
        """Runs the cell in NumPy, and shows the report of its kernels."""
        if line.strip():
            raise UsageError("%%pallas_report takes nothing on its line")
        shell: Any = self.shell
        with Recording() as recording:
            result = shell.run_cell(cell)
        display(recording.report)
        if settings.current().check:
            display(handover.of_process())
        result.raise_error()


def _status() -> str:
    jax = sys.modules.get("jax")
    version = f"JAX {jax.__version__}" if jax is not None else "JAX isn't imported yet"
    is_on = "on: Pallas kernels run in NumPy" if patching.is_active() else "off"
    return f"pallas_shim {pallas_shim.__version__} is {is_on} ({version})"


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext pallas_shim``: switches the shim on, whether or not JAX has run."""
    patching.activate()
    shell.register_magics(PallasMagics)
    print(_status())


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext pallas_shim``: JAX is as it was."""
    del shell
    patching.deactivate()


_OFFER = (
    "pallas_shim is installed and off: %load_ext pallas_shim runs this kernel in NumPy. "
    "(PALLAS_NUMPY=1 has to be in the environment before JAX is imported.)"
)


def offer_when_refused(shell: Any) -> None:
    """Tells the user of the extension, once, if JAX refuses a kernel because there is no TPU."""

    def look(result: Any) -> None:
        error = result.error_in_exec
        if patching.is_active() or "Only interpret mode is supported on CPU" not in str(error):
            return
        shell.events.unregister("post_run_cell", look)
        print(_OFFER, file=sys.stderr)

    shell.events.register("post_run_cell", look)
