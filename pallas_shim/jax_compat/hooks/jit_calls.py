"""Answers calls of jitted functions before JAX traces, if jit's C++ cache has no answer.

JAX keeps what it inferred from a call (above all its traced form) in an entry for the function, the
types of the arguments, the static values and the configuration. The answers here are attached to
those entries, so whatever makes JAX forget also makes the shim forget. Looking plans up by jaxpr,
where JAX runs what it has inferred, would be plainer. But a call that adds 8 numbers takes a fifth
longer that way, and a call whose program an earlier process has cached has no jaxpr.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Protocol

import jax
from jax._src import config, core, pjit, tree_util
from jax._src import mesh as mesh_lib
from jax._src.array import ArrayImpl
from jax._src.interpreters import partial_eval
from jax._src.lib import jax_jit
from jax.sharding import SingleDeviceSharding

from pallas_shim.jax_compat.jaxprs import open_jaxpr


class Call(NamedTuple):
    """A call that JAX has not traced yet: the function, what jit was told, and with what."""

    function: Callable[..., Any]
    jit_info: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    avals: tuple[Any, ...]


class Known(NamedTuple):
    """The information of `CallHandler.load` about a call: see there."""

    plan: Any
    out_tree: Any
    consts: list[Any]


class CallHandler(Protocol):
    """Answers calls."""

    def plan(self, params: dict[str, Any]) -> Any | None:
        """The plan, if there is one, for calls of a function that JAX has traced. ``params`` are
        those that `jit_entry.JIT_CALL` gets."""

    def run(self, args: Sequence[Any], plan: Any) -> Sequence[Any] | None:
        """The results of a call; None: JAX is to go on.

        ``args`` are the arrays that the function captured and then its arguments; ``plan`` is
        what `plan` or `load` gave.
        """

    def load(self, call: Call) -> Any:
        """What is `Known` of a call that JAX has not traced. None, or else anything that `ran` is
        to get: JAX is to trace it."""

    def tracing(self, given: Any) -> AbstractContextManager[Any]:
        """Is entered around JAX's tracing of a call that `load` gave something else for."""

    def ran(self, given: Any, params: dict[str, Any], out_tree: Any, consts: list[Any]) -> None:
        """Hears of each call that `load` gave something else for, when JAX has traced and run
        it."""


# jit looks at this to see whether its C++ cache can serve the next call. It can't.
_NO_JAXPR = SimpleNamespace(effects=(), consts=())

_REGISTRY = getattr(tree_util, "tracing_registry", None) or tree_util.default_registry


def answer_calls(answers: CallHandler) -> Callable[[], None]:
    """Answers jitted calls that jit's C++ cache doesn't serve; returns the undoing.

    ``answers`` isn't asked while another function is traced, or while JAX debugs. It is never asked
    on JAX 0.9.0, which has no such entries; calls go JAX's whole way to `jit_entry.JIT_CALL` there.
    """
    if not hasattr(pjit, "_infer_params"):
        return lambda: None
    stock_infer = pjit._infer_params
    old = not hasattr(pjit, "_run_python_pjit")  # JAX before 0.9
    run_name = "_python_pjit_helper" if old else "_run_python_pjit"
    stock_run: Any = getattr(pjit, run_name)
    calling = _inner_code(pjit._cpp_pjit, "cache_miss")
    stock_trace: Any = None if old else pjit._trace_for_jit
    traced = threading.local()
    own_config = _Config(calling)
    no_answers = nullcontext()

    def infer(fun: Any, info: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """In the place of _infer_params, which others than calls ask too."""
        given = None
        if not old and sys._getframe(1).f_code is calling:
            found = answered(fun, info, args, kwargs)
            if isinstance(found, _Unknown):
                given = found.given
            elif found is not None:
                return found
        to_trace: Any = None
        try:
            inferred, args_flat = stock_infer(fun, info, args, kwargs)
        except _ToTrace as error:
            to_trace = error.args
        if to_trace is not None:
            # Tracing has no more frames than under stock JAX, since user code can count them.
            with no_answers if given is None else answers.tracing(given):
                inferred = stock_trace(*to_trace)
            entry, dynamic, _ = _entry(fun, info, args, kwargs)
            if entry is None or open_jaxpr(inferred.params["jaxpr"])[0].is_high:
                traced.params = inferred
                inferred, args_flat = stock_infer(fun, info, args, kwargs)
            else:  # what _infer_params does then, which asking again would take longer for
                entry.pjit_params = inferred
                args_flat = inferred.consts + dynamic
        if given is not None:
            return _Loading(given, inferred), args_flat
        if isinstance(inferred.params, dict):
            return inferred, args_flat
        # Known without a trace, which is what is asked for.
        entry, _, _ = _entry(fun, info, args, kwargs)
        entry.pjit_params = None
        return infer(fun, info, args, kwargs)

    def trace(*args: Any) -> Any:
        """In the place of _trace_for_jit."""
        params, traced.params = getattr(traced, "params", None), None
        if params is None:
            raise _ToTrace(*args)
        return params

    def answered(fun: Any, info: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | _Unknown | None:
        """What _infer_params returns, or `_ANSWERED` and the results; None or `_Unknown`: JAX is to
        go on."""
        entry = None
        if _ordinary():
            entry, dynamic, avals = _entry(fun, info, args, kwargs)
        if entry is None:
            _may_be_traced(info)
            return None
        inferred = entry.pjit_params
        if inferred is None:
            known = answers.load(Call(fun, info, args, kwargs, avals))
            if type(known) is not Known:
                _may_be_traced(info)
                return None if known is None else _Unknown(known)
            inferred = entry.pjit_params = pjit.PjitParams(
                known.consts, known.plan, avals, None, known.out_tree, ()
            )
        args_flat = inferred.consts + dynamic if inferred.consts else dynamic
        params = inferred.params
        if type(params) is dict:
            plan = answers.plan(_as_run(params))
            if plan is None:
                return inferred, args_flat
            params = _Planned(params)
            params.plan = plan
            inferred = entry.pjit_params = inferred._replace(params=params)
        traced = type(params) is _Planned
        out = answers.run(args_flat, params.plan if traced else params)
        if out is not None:
            return _ANSWERED, inferred.out_tree.unflatten(out)
        if traced:
            return inferred, args_flat
        entry.pjit_params = None
        return None

    def run(inferred: Any, args_flat: Any, fun: Any, args: Any, kwargs: Any) -> Any:
        """In the place of _run_python_pjit."""
        if inferred is _ANSWERED:
            return args_flat, (), None, (), _NO_JAXPR, None, None, ()
        if type(inferred) is not _Loading:
            return stock_run(inferred, args_flat, fun, args, kwargs)
        given, inferred = inferred
        returned = stock_run(inferred, args_flat, fun, args, kwargs)
        answers.ran(given, _as_run(inferred.params), inferred.out_tree, inferred.consts)
        return returned

    def infer_and_run(fun: Any, info: Any, *args: Any, **kwargs: Any) -> Any:
        """In the place of _python_pjit_helper."""
        found = answered(fun, info, args, kwargs)
        if not isinstance(found, _Unknown):
            if found is not None and found[0] is _ANSWERED:
                return run(*found, fun, args, kwargs)
            return stock_run(fun, info, *args, **kwargs)
        with answers.tracing(found.given):
            inferred, _ = stock_infer(fun, info, args, kwargs)
        returned = stock_run(fun, info, *args, **kwargs)
        answers.ran(found.given, inferred.params, inferred.out_tree, inferred.consts)
        return returned

    stock: dict[str, Any] = {"_infer_params": stock_infer, run_name: stock_run, "config": config}
    our_run = infer_and_run if old else run
    ours: dict[str, Any] = {"_infer_params": infer, run_name: our_run, "config": own_config}
    if not old:
        stock["_trace_for_jit"], ours["_trace_for_jit"] = stock_trace, trace

    def undo() -> None:
        vars(pjit).update(stock)
        pjit._infer_params_cached.cache_clear()

    vars(pjit).update(ours)
    return undo


class _Config(ModuleType):
    """JAX's configuration, but that code which takes each call without an answer in C++ for one
    that is to be traced may go on: `_may_be_traced` asks instead."""

    def __init__(self, code: Any):
        super().__init__("config")
        self.no_tracing = _NoTracing(code)

    def __getattr__(self, name: str) -> Any:
        return getattr(config, name)


class _NoTracing:
    def __init__(self, code: Any):
        self._code = code

    @property
    def value(self) -> bool:
        return config.no_tracing.value and sys._getframe(1).f_code is not self._code


def _may_be_traced(info: Any) -> None:
    """Raises what JAX does if the user has forbidden tracing."""
    if config.no_tracing.value:
        raise RuntimeError(
            f"re-tracing function {info.fun_sourceinfo} for `jit`, but 'no_tracing' is set"
        )


class _ToTrace(Exception):
    """The function and arguments that JAX was going to trace."""


def without_arrays(call: Call) -> Call:
    """A call whose arguments are types, so that it keeps no array alive."""
    static, names = {*call.jit_info.static_argnums}, {*call.jit_info.static_argnames}
    avals = iter(call.avals)
    count = len(call.args)
    static |= {n + count for n in static if n < 0}

    def type_of(leaf: Any) -> Any:
        aval = next(avals)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

    args = tuple([
        arg if i in static else jax.tree.map(type_of, arg) for i, arg in enumerate(call.args)
    ])
    # JAX takes those with a name in the order of their names.
    kwargs = {
        name: arg if name in names else jax.tree.map(type_of, arg)
        for name, arg in sorted(call.kwargs.items())
    }
    return call._replace(args=args, kwargs=kwargs)


def trace_anew(call: Call) -> tuple[dict[str, Any], Any, list[Any]]:
    """Makes JAX trace a call as if for the first time. Returns the parameters that `hooks.JIT_CALL`
    would get, the tree of the results, and the arrays that the function captured."""
    pjit._infer_params_cached.cache_clear()
    inferred, _ = pjit._infer_params(call.function, call.jit_info, call.args, call.kwargs)
    return _as_run(inferred.params), inferred.out_tree, inferred.consts


def _as_run(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with which JAX runs a call that it has traced. Since JAX 0.12 it lowers types
    of its own first, if a function has them inside only."""
    jaxpr = params["jaxpr"]
    if not _LOWERS or not jaxpr.is_high:
        return params
    if any(aval.is_high for aval in (*jaxpr.in_avals, *jaxpr.out_avals)):
        return params
    return {**params, "jaxpr": partial_eval.lower_jaxpr2(jaxpr)}


_run = getattr(pjit, "_run_python_pjit", None)
_LOWERS = _run is not None and "lower_jaxpr2" in _run.__code__.co_names


class _Planned(dict):
    """The parameters of a function that JAX has traced, with the plan for its calls."""

    plan: Any


# Stands where _infer_params returns what it inferred: the results, not the arguments, follow.
_ANSWERED = object()


class _Unknown(NamedTuple):
    """A call that JAX is to trace: what `CallHandler.load` gave for it."""

    given: Any


class _Loading(NamedTuple):
    """A call that is traced: what `CallHandler.load` gave for it, and what JAX inferred."""

    given: Any
    inferred: Any


def _ordinary() -> bool:
    return core.trace_state_clean() and not (
        config.debug_nans.value
        or config.debug_infs.value
        or config.debug_key_reuse.value
        or config.no_execution.value
    )


def _entry(fun: Any, info: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any], tuple[Any, ...]]:
    """JAX's entry for a call, its non-static arguments, and their types.

    The entry is None if there is a mesh, or an argument about which JAX has to complain.
    """
    signature, dynamic = jax_jit.parse_arguments(
        args, tuple(kwargs.values()), tuple(kwargs), info.static_argnums, info.static_argnames,
        _REGISTRY,
    )  # fmt: skip
    mesh = mesh_lib.get_concrete_mesh()
    if mesh is not mesh_lib.empty_concrete_mesh or info.use_resource_env:
        return None, dynamic, ()
    if mesh_lib.get_abstract_mesh() is not mesh_lib.empty_abstract_mesh:
        return None, dynamic, ()
    try:
        avals = tuple([
            arg.aval
            if type(arg) is ArrayImpl and type(arg._sharding) is SingleDeviceSharding
            else core.shaped_abstractify(arg)
            for arg in dynamic
        ])
    except (TypeError, ValueError, OverflowError):
        return None, dynamic, ()
    return pjit._infer_params_cached(fun, info, signature, avals, mesh), dynamic, avals


def _inner_code(function: Any, name: str) -> Any:
    """The code of a function defined inside another."""
    return next(c for c in function.__code__.co_consts if getattr(c, "co_name", None) == name)
