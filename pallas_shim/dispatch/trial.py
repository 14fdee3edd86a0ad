"""Moves a function without a kernel from NumPy to XLA when it has run long enough."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import jax

from pallas_shim.dispatch import background, stock
from pallas_shim.jax_compat.forks import xla_is_lost
from pallas_shim.jax_compat.hooks import jit_entry

log = logging.getLogger("pallas_shim")


class Trial:
    """The time that a function may run in NumPy: until compiling it would have been cheaper.

    Then it is compiled in the background, and runs in NumPy until that is done. In a forked process
    that may be never.
    """

    def __init__(self, params: dict[str, Any], seconds: float, saved: float):
        """Begins.

        Args:
          params: those of the call that XLA would run.
          seconds: what XLA takes to compile it.
          saved: the share of a run that the compiled function doesn't take.
        """
        self._left, self._saved = seconds, saved
        self._is_over = False
        # A plan lives as long as its jaxpr, so it doesn't hold it.
        self._jaxpr = weakref.ref(params["jaxpr"])
        self._params = {name: value for name, value in params.items() if name != "jaxpr"}

    def is_over(self) -> bool:
        """Whether XLA has taken over."""
        return self._is_over

    def end(self) -> None:
        self._left, self._is_over = -1.0, True

    def ran(self, seconds: float, args: Sequence[Any]) -> None:
        """Counts a call that ran in NumPy."""
        if self._left < 0:
            return
        self._left -= seconds * self._saved
        if self._left < 0 and not xla_is_lost():
            if not any(self._params["donated_invars"]):
                background.later(lambda: self._compile(args))
            else:
                self._is_over = True

    def _compile(self, args: Sequence[Any]) -> None:
        """Has JAX run the call once more, so that it has compiled it when the next one comes."""
        jaxpr = self._jaxpr()
        try:
            if jaxpr is not None:
                with stock.left_to_jax():
                    jax.block_until_ready(jit_entry.run(args, {**self._params, "jaxpr": jaxpr}))
        except Exception as error:  # the next call raises it, if it isn't the thread's own
            log.info("compiling %s in the background: %s", self._params["name"], error)
        finally:
            self._is_over = True
