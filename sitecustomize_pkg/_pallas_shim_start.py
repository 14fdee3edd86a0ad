"""The one module that a Python process imports because of pallas_shim when it is off."""

import os
import sys

_begun = False


def start():
    """Called from the .pth or the .start file, by site; maybe more than once.

    Site may not have seen every directory yet, so the shim begins when it has.
    """
    if not _wanted():
        return
    import site

    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not site.main.__code__:
        frame = frame.f_back
    if frame is None:  # site is done: a later call of site.addsitedir
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
    """Activates the shim, once, if PALLAS_NUMPY asks for it. Never raises: it would end Python."""
    global _begun
    if _begun or not _wanted():
        return
    _begun = True
    try:
        from pallas_shim import startup
    except ImportError as error:  # as in pip's build environments, which hide site-packages
        print(f"pallas_shim is off, this process runs on stock JAX: {error}", file=sys.stderr)
    else:
        startup.run()


def _wanted():
    return os.environ.get("PALLAS_NUMPY", "") not in ("", "0")
