"""Readers of functions for a fingerprint: their code, and the globals that it names."""

from __future__ import annotations

import builtins
import enum
import functools
import types
from collections.abc import Sequence
from typing import Any, cast

from pallas_shim.cache import libraries
from pallas_shim.cache.bytecode import closure_reads, contents, reads
from pallas_shim.cache.fingerprint import Fingerprint, reader, reader_if
from pallas_shim.cache.values import DATA, read_in_any_order
from pallas_shim.jax_compat import inputs

# The attributes of every module. Code could read any name from a module that is read as a whole.
_MODULE_ATTRIBUTES = frozenset(
    """__annotations__ __builtins__ __cached__ __doc__ __file__ __loader__ __name__ __package__
    __path__ __spec__""".split()
)


@reader(types.FunctionType)
def _read_function(fingerprint: Fingerprint, function: types.FunctionType) -> None:
    name, code = function.__globals__.get("__name__", ""), function.__code__
    fingerprint.path.append(f"{name}.{code.co_qualname}")
    if libraries.owns_function(function):
        fingerprint.owned(name, code.co_qualname, function)
        fingerprint.emit(str(code.co_firstlineno), code.co_code)
        if "<locals>" in code.co_qualname:
            for value in map(contents, function.__closure__ or ()):
                if isinstance(value, types.ModuleType) and libraries.is_own_module(value):
                    fingerprint.emit("module", value.__name__)  # its uses are known
                else:
                    fingerprint.add(value)
            _read_attributes(fingerprint, function)
    else:
        if libraries.is_standard(name) and name != "__main__":
            raise fingerprint.refusal("its results may depend on more than its arguments")
        if not fingerprint.add_traced(function):
            _read_users_function(fingerprint, function)
    fingerprint.path.pop()


def _read_users_function(fingerprint: Fingerprint, function: types.FunctionType) -> None:
    code, namespace = function.__code__, function.__globals__
    known = cast(Any, function).__builtins__
    if type(namespace) is not dict or (known and known is not vars(builtins)):
        raise fingerprint.refusal("its globals or built-ins aren't in an ordinary dict")
    fingerprint.emit(
        function.__name__, function.__qualname__, repr(function.__module__), repr(function.__doc__)
    )
    closed = dict(zip(code.co_freevars, map(contents, function.__closure__ or ()), strict=True))
    modules = [name for name, value in closed.items() if isinstance(value, types.ModuleType)]
    _read_code(fingerprint, code, namespace, frozenset(modules))
    for variable, value in closed.items():
        _read_closure(fingerprint, code, variable, value)
    _read_attributes(fingerprint, function)


def _read_attributes(fingerprint: Fingerprint, function: types.FunctionType) -> None:
    fingerprint.add_all([function.__defaults__, function.__kwdefaults__])
    fingerprint.add_variables(function.__dict__)


def _read_closure(
    fingerprint: Fingerprint, code: types.CodeType, variable: str, value: Any
) -> None:
    """Reads what a function closes over. A module is read only by the attributes that code uses."""
    chains = closure_reads(code, variable) if isinstance(value, types.ModuleType) else None
    fingerprint.emit("closure", variable)
    if chains is None:
        fingerprint.add(value)
        return
    for attributes in chains:
        _read_chain(fingerprint, variable, value, attributes)


def _read_code(
    fingerprint: Fingerprint, code: types.CodeType, namespace: dict[str, Any],
    modules: frozenset[str],
) -> None:
    fingerprint.found.codes.append((code, namespace, modules))
    fingerprint.emit(
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
            _read_code(fingerprint, const, namespace, modules)
        elif type(const) is str:
            fingerprint.emit("str", const)
        elif type(const) is frozenset:  # `rules` allows only uses without an order
            fingerprint.emit("frozenset", repr(sorted(map(repr, const))))
        else:
            fingerprint.add(const)
    read = reads(code)
    for module in read.imports:
        fingerprint.imported(module)
    for name in read.sets:
        raise fingerprint.refusal(f"it sets the global {name} while it is traced")
    for name, *attributes in read.globals:
        _read_global(fingerprint, name, attributes, namespace)


def _read_global(
    fingerprint: Fingerprint, name: str, attributes: Sequence[str], namespace: dict[str, Any]
) -> None:
    fingerprint.emit("global", name)
    if name in namespace:
        value = namespace[name]
    elif hasattr(builtins, name):
        value = getattr(builtins, name)
        identity = libraries.identity(value)
        if identity is not None:
            fingerprint.found.attributes.update(attributes)
            fingerprint.emit(identity)
            return
    else:
        fingerprint.emit("absent")
        return
    if type(value) in (set, frozenset) and not attributes and name in namespace:
        read_in_any_order(fingerprint, value)  # `rules` allows only uses without an order
        return
    _read_chain(fingerprint, name, value, attributes)


def _read_chain(
    fingerprint: Fingerprint, name: str, value: Any, attributes: Sequence[str]
) -> None:
    """Reads attributes, one from another. A value that isn't a module is read as a whole."""
    for position, attribute in enumerate(attributes):
        if not isinstance(value, types.ModuleType):
            fingerprint.found.attributes.update(attributes[position:])
            break
        if libraries.is_library(value.__name__):
            _read_of_library(fingerprint, value, attributes[position:])
            return
        _check_users_module(fingerprint, value)
        name = f"{value.__name__}.{attribute}"
        fingerprint.emit("attribute", name)
        if attribute not in vars(value):
            if "__getattr__" in vars(value):
                raise fingerprint.refusal(f"{name} is made by the module's __getattr__")
            if hasattr(types.ModuleType, attribute):
                raise fingerprint.refusal(f"it asks for {name}")
            fingerprint.emit("absent")
            return
        value = vars(value)[attribute]
    fingerprint.add(value, name)


def _check_users_module(fingerprint: Fingerprint, module: types.ModuleType) -> None:
    name = module.__name__
    if libraries.is_impure(name) or libraries.is_standard(name) and name != "__main__":
        raise fingerprint.refusal(f"it reaches the module {name}")
    if type(module) is not types.ModuleType:
        raise fingerprint.refusal(f"the module {name} has a class of its own")


def _read_of_library(
    fingerprint: Fingerprint, module: types.ModuleType, attributes: Sequence[str]
) -> None:
    """Reads an attribute of a library's module. The user may have replaced it."""
    value: Any = module
    for position, attribute in enumerate(attributes):
        if not isinstance(value, types.ModuleType):
            fingerprint.found.attributes.update(attributes[position:])
            break
        place = value.__name__
        try:
            value = getattr(value, attribute)
        except AttributeError:
            fingerprint.owned(place, attribute, None)
            fingerprint.emit("absent")
            return
        if not isinstance(value, types.ModuleType):
            fingerprint.owned(place, attribute, value)
            break
        fingerprint.emit("module", place, attribute)
        if not libraries.is_library(value.__name__):
            rest = attributes[position + 1 :]
            _read_chain(fingerprint, value.__name__, value, rest)
            return
    else:
        position = len(attributes) - 1
    rest = attributes[position + 1 :]
    if isinstance(value, enum.EnumMeta) and rest and rest[0] in value.__members__:
        rest = rest[1:]
    fingerprint.found.attributes.update(rest)
    if isinstance(value, types.ModuleType):
        fingerprint.add(value)
    else:  # the user may have put it there
        identity = libraries.identity(value)
        if identity is None or type(value) in DATA:
            fingerprint.add(value, attributes[-1])
        else:
            fingerprint.emit(identity)


@reader_if(lambda value: isinstance(value, types.ModuleType))
def _read_module(fingerprint: Fingerprint, module: types.ModuleType) -> None:
    """Refuses or reads a module whose attributes aren't read one by one."""
    name = module.__name__
    if libraries.is_library(name):
        raise fingerprint.refusal(f"it hands on the module {name}, so anything in it may be used")
    _check_users_module(fingerprint, module)
    if "__getattr__" in vars(module):
        raise fingerprint.refusal(f"the module {name} makes attributes by __getattr__")
    fingerprint.emit(name)
    fingerprint.found.defined.update(vars(module))
    for attribute, value in vars(module).items():
        if attribute not in _MODULE_ATTRIBUTES:
            fingerprint.emit(attribute)
            fingerprint.add(value, f"{name}.{attribute}")


@reader(types.BuiltinFunctionType)
def _read_builtin(fingerprint: Fingerprint, function: Any) -> None:
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or ""
    if owner is builtins:
        fingerprint.owned("builtins", f"{function.__name__}, passed on", function)
    elif owner is not None and not isinstance(owner, types.ModuleType):
        fingerprint.found.attributes.add(function.__name__)
        fingerprint.emit(function.__qualname__)
        fingerprint.add(owner)
    elif module and not libraries.is_library(module):
        raise fingerprint.refusal(f"it reaches {module}.{function.__name__}")
    else:
        fingerprint.owned(module or "builtins", function.__qualname__, function)


@reader(types.MethodType)
def _read_method(fingerprint: Fingerprint, method: Any) -> None:
    fingerprint.add_all((method.__func__, method.__self__))


@reader(
    types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType
)
def _read_method_of_class(fingerprint: Fingerprint, method: Any) -> None:
    fingerprint.found.attributes.add(method.__name__)
    fingerprint.add_all((method.__name__, method.__objclass__))


@reader(types.MethodWrapperType)
def _read_bound_wrapper(fingerprint: Fingerprint, method: Any) -> None:
    fingerprint.found.attributes.add(method.__name__)
    fingerprint.add_all((method.__name__, method.__self__))


@reader(functools.partial)
def _read_partial(fingerprint: Fingerprint, partial: Any) -> None:
    fingerprint.add_all((partial.func, partial.args, partial.keywords))
    fingerprint.add_variables(vars(partial))


@reader(type(functools.lru_cache(len)))
def _read_cached(fingerprint: Fingerprint, function: Any) -> None:
    if function.cache_info().currsize and not libraries.is_library(function.__module__):
        raise fingerprint.refusal(f"{function.__qualname__} holds results of earlier calls")
    fingerprint.add_all((function.cache_parameters(), function.__wrapped__))


@reader(inputs.JIT_INFO)
def _read_jit_info(fingerprint: Fingerprint, jit_info: Any) -> None:
    """Reads the options given to jit, without the function. Wrappers of jitted functions hold
    them, too."""
    options = inputs.jit_options(jit_info)
    if options is None:
        raise fingerprint.refusal("the user told jit where the arguments are")
    fingerprint.add(options)


@reader_if(lambda value: inputs.jitted(value) is not None)
def _read_jitted(fingerprint: Fingerprint, value: Any) -> None:
    found = inputs.jitted(value)
    assert found is not None
    fingerprint.add_jitted(*found)
    fingerprint.add_variables(inputs.variables_of_jitted(value))


@reader_if(lambda value: _is_known(value))
def _read_known(fingerprint: Fingerprint, value: Any) -> None:
    """Reads a value that a library's module holds under the value's own name."""
    home, identity = libraries.home(value), libraries.identity(value)
    assert home is not None and identity is not None
    fingerprint.owned(*home, value)
    fingerprint.emit(identity)


def _is_known(value: Any) -> bool:
    if isinstance(value, type):
        return False
    home = libraries.home(value)
    if home is None or not libraries.is_library(home[0]):
        return False
    return libraries.identity(value) is not None
