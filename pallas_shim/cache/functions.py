"""How functions are read for a digest: their code, and the globals that it names."""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pallas_shim.cache import libraries
from pallas_shim.cache.bytecode import closure_reads, contents, reads
from pallas_shim.cache.values import DATA
from pallas_shim.jax_compat import inputs

if TYPE_CHECKING:
    from pallas_shim.cache.reach import Reach

# What reads or does more than its arguments say.
_OPAQUE_BUILTINS = frozenset(
    "__import__ breakpoint compile eval exec globals input locals open print vars".split()
)
_MODULE_ATTRIBUTES = frozenset(
    """__annotations__ __builtins__ __cached__ __doc__ __file__ __loader__ __name__ __package__
    __path__ __spec__""".split()
)


def _read_function(reach: Reach, function: types.FunctionType) -> None:
    name, code = function.__globals__.get("__name__", ""), function.__code__
    reach.path.append(f"{name}.{code.co_qualname}")
    if libraries.owns_function(function):
        reach.owned(name, code.co_qualname)
        reach.emit(str(code.co_firstlineno), code.co_code)
        if "<locals>" in code.co_qualname:
            reach.add_all(map(contents, function.__closure__ or ()))
            _read_attributes(reach, function)
    else:
        if libraries.is_standard(name) and name != "__main__":
            raise reach.refusal("its results may depend on more than its arguments")
        _read_code(reach, code, function.__globals__)
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            _read_closure(reach, code, variable, contents(cell))
        _read_attributes(reach, function)
    reach.path.pop()


def _read_attributes(reach: Reach, function: types.FunctionType) -> None:
    reach.add_all([function.__defaults__, function.__kwdefaults__])
    reach.add_items(function.__dict__)


def _read_closure(reach: Reach, code: types.CodeType, variable: str, value: Any) -> None:
    """Reads what a function closes over: of a module only what it asks of it."""
    chains = closure_reads(code, variable) if isinstance(value, types.ModuleType) else None
    reach.emit("closure", variable)
    if chains is None:
        reach.add(value)
        return
    for attributes in chains:
        _read_chain(reach, variable, value, attributes)


def _read_code(reach: Reach, code: types.CodeType, namespace: dict[str, Any]) -> None:
    reach.names.update(code.co_names)
    reach.emit(
        code.co_filename, code.co_qualname, code.co_code, code.co_linetable,
        code.co_exceptiontable,
        repr((
            code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags,
            code.co_firstlineno, code.co_names, code.co_varnames, code.co_freevars,
            code.co_cellvars,
        )),
    )  # fmt: skip
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            _read_code(reach, const, namespace)
        else:
            reach.add(const)
    read = reads(code)
    for module in read.imports:
        reach.imported(module)
    for name in read.sets:
        raise reach.refusal(f"it sets the global {name} while it is traced")
    for name, *attributes in read.globals:
        _read_global(reach, name, attributes, namespace)


def _read_global(
    reach: Reach, name: str, attributes: Sequence[str], namespace: dict[str, Any]
) -> None:
    reach.emit("global", name)
    if name in namespace:
        value = namespace[name]
    elif hasattr(builtins, name):
        value = getattr(builtins, name)
        if name in _OPAQUE_BUILTINS:
            raise reach.refusal(f"it calls {name}")
    else:
        reach.emit("absent")
        return
    _read_chain(reach, name, value, attributes)


def _read_chain(reach: Reach, name: str, value: Any, attributes: Sequence[str]) -> None:
    """Reads attributes that are asked for in turn, from what isn't a module on as a whole."""
    for position, attribute in enumerate(attributes):
        if not isinstance(value, types.ModuleType):
            break
        if libraries.is_library(value.__name__):
            _read_of_library(reach, value, attributes[position:])
            return
        if libraries.is_standard(value.__name__):
            raise reach.refusal(f"it reaches the module {value.__name__}")
        name = f"{value.__name__}.{attribute}"
        reach.emit("attribute", name)
        if attribute not in vars(value):
            if "__getattr__" in vars(value):
                raise reach.refusal(f"{name} is made by the module's __getattr__")
            reach.emit("absent")
            return
        value = vars(value)[attribute]
    reach.add(value, name)


def _read_of_library(
    reach: Reach, module: types.ModuleType, attributes: Sequence[str]
) -> None:
    """Reads an attribute of a library's module, its own or one that was put there."""
    value: Any = module
    for attribute in attributes:
        if not isinstance(value, types.ModuleType):
            break
        reach.owned(value.__name__, attribute)
        try:
            value = getattr(value, attribute)
        except AttributeError:
            reach.emit("absent")
            return
        if isinstance(value, types.ModuleType) and not libraries.is_library(value.__name__):
            reach.add(value)
            return
    if isinstance(value, types.ModuleType):
        reach.add(value)
    else:  # it may be in the place of another
        identity = libraries.identity(value)
        if identity is None or type(value) in DATA:
            reach.add(value, attributes[-1])
        else:
            reach.emit(identity)


def _read_module(reach: Reach, module: types.ModuleType) -> None:
    """A module that is not asked for a known attribute."""
    name = module.__name__
    if libraries.is_library(name):
        reach.imported(name)
        return
    if libraries.is_impure(name) or libraries.is_standard(name):
        raise reach.refusal(f"it reaches the module {name}")
    reach.emit(name)
    for attribute, value in vars(module).items():
        if attribute not in _MODULE_ATTRIBUTES:
            reach.emit(attribute)
            reach.add(value, f"{name}.{attribute}")


def _read_builtin(reach: Reach, function: Any) -> None:
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or ""
    if owner is not None and not isinstance(owner, types.ModuleType):
        reach.emit(function.__qualname__)
        reach.add(owner)
    elif function.__name__ in _OPAQUE_BUILTINS and module == "builtins":
        raise reach.refusal(f"it reaches {function.__name__}")
    elif module and not libraries.is_library(module):
        raise reach.refusal(f"it reaches {module}.{function.__name__}")
    else:
        reach.owned(module or "builtins", function.__qualname__)


def _read_cached(reach: Reach, function: Any) -> None:
    if function.cache_info().currsize and not libraries.is_library(function.__module__):
        raise reach.refusal(f"{function.__qualname__} holds results of earlier calls")
    reach.add(function.__wrapped__)


def _read_jit_info(reach: Reach, jit_info: Any) -> None:
    """What jit was told, without the function: what wraps a jitted function holds it as well."""
    options = inputs.jit_options(jit_info)
    if options is None:
        raise reach.refusal("jit was told where the arguments lie")
    reach.add(options)


def read_known(reach: Reach, value: Any) -> bool:
    """Reads jitted functions, and what a library's module has under a value's own name."""
    jitted = inputs.jitted(value)
    if jitted is not None:
        reach.emit("jit")
        reach.add_jitted(*jitted)
        return True
    home = libraries.home(value)
    if home is None or not libraries.is_library(home[0]):
        return False
    identity = libraries.identity(value)
    if identity is None:
        return False
    reach.owned(*home)
    reach.emit(identity)
    return True


READERS: dict[type, Callable[[Reach, Any], None]] = {
    types.FunctionType: _read_function,
    types.MethodType: lambda reach, x: reach.add_all((x.__func__, x.__self__)),
    types.BuiltinFunctionType: _read_builtin,
    types.MethodDescriptorType: lambda reach, x: reach.add_all((x.__name__, x.__objclass__)),
    types.WrapperDescriptorType: lambda reach, x: reach.add_all((x.__name__, x.__objclass__)),
    types.ClassMethodDescriptorType: lambda reach, x: reach.add_all((x.__name__, x.__objclass__)),
    types.MethodWrapperType: lambda reach, x: reach.add_all((x.__name__, x.__self__)),
    types.ModuleType: _read_module,
    functools.partial: lambda reach, x: reach.add_all((x.func, x.args, x.keywords, vars(x))),
    type(functools.lru_cache(len)): _read_cached,
    inputs.JIT_INFO: _read_jit_info,
}
