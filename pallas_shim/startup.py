"""Starts the shim in a new Python process, which may never import JAX: so with as few imports as
can be. All else waits until JAX is imported."""

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def run() -> None:
    """Makes the shim active in a Python process that starts. Never raises.

    A bad setting ends the process with status 1, as a bad PYTHON* variable does: what the user
    asked for is unknown.
    """
    if _others() or os.environ["PALLAS_NUMPY"] not in ("1", "force"):
        _check_settings()
    report = os.environ.get("PALLAS_NUMPY_REPORT", "")
    if report not in ("", "0", "1"):
        # The processes that this one starts may call kernels, even if it doesn't itself.
        os.environ.setdefault("_PALLAS_SHIM_RUN", os.urandom(8).hex())
        atexit.register(_gather, os.getpid(), report)
    if "jax" in sys.modules:  # a sitecustomize or a .pth file has imported it
        _activate()
    else:
        sys.meta_path.insert(0, Waiting)


def _others() -> list[str]:
    return [n for n, value in os.environ.items() if n.startswith("PALLAS_NUMPY_") and value]


def stay_off() -> None:
    """For a process that starts without PALLAS_NUMPY, but may want it: other variables of the shim
    are set, or it is a notebook. Never raises."""
    sys.meta_path.insert(0, _Off)


class _Off:
    """A finder that finds nothing itself. When JAX is looked for, and the variable is set by then,
    it activates the shim. When Pallas is looked for, and the shim is off, it tells the user."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name == "jax" and os.environ.get("PALLAS_NUMPY", "") not in ("", "0"):
            sys.meta_path.remove(_Off)
            sys.meta_path.insert(0, Waiting)
            return Waiting.find_spec(name, path, target)
        if name == "jax.experimental.pallas" and _Off in sys.meta_path:
            sys.meta_path.remove(_Off)
            _tell_that_it_is_off()
        return None


def _tell_that_it_is_off() -> None:
    from pallas_shim import patching

    if patching.is_active():
        return
    if _others():
        text = "pallas_shim is off: set PALLAS_NUMPY=1, and not only"
        print(f"{text} {', '.join(_others())}", file=sys.stderr)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        from pallas_shim.plugins.ipython import offer_when_refused

        offer_when_refused(shell)


class Waiting:
    """A finder that finds nothing itself. When JAX is looked for, it activates the shim first."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        # Another finder may have found JAX before this one was asked.
        if name not in ("jax", "jax.experimental.pallas") or not stop_waiting():
            return None
        _activate()
        # The search that asked has passed those in front, where the shim has put its own.
        for finder in list(sys.meta_path):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def is_waiting() -> bool:
    """Whether the shim is active as soon as JAX is imported."""
    return Waiting in sys.meta_path


def stop_waiting() -> bool:
    """Doesn't wait for JAX any more. Whether it did: of several threads that ask, one is told."""
    try:
        sys.meta_path.remove(Waiting)
    except ValueError:
        return False
    return True


def _activate() -> None:
    from pallas_shim import environment, exit_status, patching, settings

    if settings.current().compile:
        exit_status.register()  # the earlier, the better
    try:
        patching.activate()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ImportError):
            reason = f"{error}; install it in this environment ({sys.prefix})"
        if settings.current().strict:
            raise ImportError(f"pallas_shim can't start: {reason}") from error
        environment.say_off(reason)


def _check_settings() -> None:
    from pallas_shim import settings

    try:
        settings.current()
    except settings.SettingError as error:
        # SystemExit would end Python's start-up with a traceback through site.
        print(f"pallas_shim: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _gather(pid: int, report: str) -> None:
    """At exit: writes what killed processes have left, unless this one writes a report itself."""
    if os.getpid() != pid or "pallas_shim.reports.files" in sys.modules:
        return
    directory, name = os.path.split(report)
    try:
        beside = os.listdir(directory or os.curdir)
    except OSError:
        return
    if any(file.startswith(f"{name}.") and file.endswith(".part") for file in beside):
        from pallas_shim.reports import files

        files.gather(report)
