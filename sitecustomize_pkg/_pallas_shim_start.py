"""Starts the shim. If the shim is off, a Python process imports only this module of it.

PYTEST_DONT_REWRITE: it is imported before pytest is, which would warn of that.
"""

import os
import sys

_begun = False


def start():
    """Called by site from the .pth or the .start file, maybe more than once.

    Site may not have added every directory yet, so the shim begins after that.
    """
    if not _wanted() and not _maybe_wanted():
        return
    import site

    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not site.main.__code__:
        frame = frame.f_back
    if frame is None:  # site is done; the user called site.addsitedir later
        begin()
        return
    execsitecustomize = site.execsitecustomize

    def then_begin():
        site.execsitecustomize = execsitecustomize
        try:
            execsitecustomize()
        finally:
            begin()

    site.execsitecustomize = then_begin


def begin():
    """Activates the shim once, if PALLAS_NUMPY asks for it. Never raises: an error would end
    Python."""
    global _begun
    wanted = _wanted()
    if _begun or not (wanted or _maybe_wanted()):
        return
    _begun = True
    try:
        from pallas_shim import startup
    except ImportError as error:  # pip's build environments hide site-packages
        if wanted:
            print(f"pallas_shim is off, this process runs on stock JAX: {error}", file=sys.stderr)
    else:
        startup.run() if wanted else startup.stay_off()


def _wanted():
    return os.environ.get("PALLAS_NUMPY", "") not in ("", "0")


def _maybe_wanted():
    """Whether the user set other variables of the shim and said nothing of this one, or may still
    set it, in a notebook."""
    if "PALLAS_NUMPY" in os.environ:
        return False
    for name, value in os.environ.items():
        if name.startswith("PALLAS_NUMPY_") and value:
            return True
    started = " ".join(sys.orig_argv[1:4])
    return "ipykernel" in started or "ipython" in started or "colab_kernel" in started
