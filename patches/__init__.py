"""The patches of JAX, one module each. Entry points name them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType


def patch_pallas(pallas: ModuleType) -> Callable[[], None]:
    """Takes over calls of Pallas kernels. Called when jax.experimental.pallas has been imported.

    These patches share an entry point. A distribution can have only one of each name, and only
    after this import everything that the patches touch is there.
    """
    from pallas_shim.gc_pause import gc_paused

    return gc_paused(_patch_pallas, pallas)  # most of it is imports, which allocate a lot


def _patch_pallas(pallas: ModuleType) -> Callable[[], None]:
    import pallas_shim
    from pallas_shim.evaluator import rules
    from pallas_shim.evaluator.codegen.source import HOME
    from pallas_shim.jax_compat.hooks import tracebacks

    from . import (
        jax_jit,
        kernel_tracing,
        pallas_call,
        remote_kernels,
        traced_calls,
        traced_names,
        traced_operators,
        traced_primitives,
    )

    rules.load_own()
    for directory in (pallas_shim.__path__[0], __path__[0], HOME):
        tracebacks.hide_frames(directory)
    modules = (
        jax_jit, kernel_tracing, pallas_call, remote_kernels, traced_calls, traced_names,
        traced_operators, traced_primitives,
    )  # fmt: skip
    with noted():
        return undo_all([module.patch(pallas) for module in modules])


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Tells the function cache that these changes are intended. It still notices changes made
    before."""
    from pallas_shim import settings

    if settings.current().cache in (None, "trace"):
        yield
        return
    from pallas_shim.cache import pristine

    pristine.keep_finding()
    yield
    pristine.note()


def undo_all(undoings: list[Callable[[], None]]) -> Callable[[], None]:
    """One callable that calls all of these, the last one first."""

    def undo() -> None:
        for each in reversed(undoings):
            each()

    return undo
