"""What a function reaches: whatever changes it changes the digest, and what can't be read is
refused by name."""

from __future__ import annotations

import collections
import functools
import itertools
import math
import os
import random
import sys
import textwrap
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax._src import tree_util
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Primitive
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from pallas_shim.cache import key  # noqa: F401 (its readers)
from pallas_shim.cache.audit import audit
from pallas_shim.cache.fingerprint import Fingerprint, Unkeyable


def digest(value) -> str:
    fingerprint = Fingerprint()
    fingerprint.add(value)
    found = fingerprint.digest()
    audit(fingerprint.found)
    return found


def module(source: str, **given) -> types.ModuleType:
    """A module of the user's, with the given source."""
    made = types.ModuleType("users_module")
    made.__file__ = "/users_module.py"
    vars(made).update(given)
    sys.modules["users_module"] = made
    exec(compile(textwrap.dedent(source), "/users_module.py", "exec"), vars(made))
    return made


@pytest.fixture(autouse=True)
def no_module_is_left():
    yield
    sys.modules.pop("users_module", None)


SOURCE = """
    import dataclasses
    import enum
    import functools
    import math
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    CONSTANT = 3
    TABLE = {"block": 8, "deep": [1, (2, {"x": 3})]}

    class Mode(enum.Enum):
        FAST = 1
        SLOW = 2

    MODE = Mode.FAST

    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 4
        rate: float = 0.5

    CONFIG = Config()

    class Layer:
        scale = 2
        def __init__(self):
            self.bias = 7
        def apply(self, x):
            return self.helper(x) * self.scale + self.bias
        @staticmethod
        def helper(x):
            return x + 1
        @property
        def width(self):
            return 5
        @classmethod
        def make(cls):
            return cls()

    LAYER = Layer()

    def inner(x, step=1, *, sign=1):
        return x + CONSTANT * step * sign

    partial = functools.partial(inner, step=4)
    def more(x, stride=1, shift=0):
        return x + CONSTANT * stride

    jitted = jax.jit(more, static_argnames="stride")
    mapped = jax.vmap(inner)

    def closing(factor):
        def times(x):
            return x * factor
        return times

    closed = closing(3)

    def block_map(i):
        return (i, 0)

    SPEC = pl.BlockSpec((8, 128), block_map)

    def kernel(x_ref, o_ref):
        o_ref[...] = inner(x_ref[...]) + TABLE["block"]

    def f(x):
        y = partial(x) + jitted(x) + mapped(x) + closed(x) + math.pi
        y = LAYER.apply(y) * CONFIG.size if MODE is Mode.FAST else y
        return pl.pallas_call(kernel, out_shape=x, in_specs=[SPEC], out_specs=SPEC)(jnp.sin(y))
"""


def test_the_same_again_is_the_same():
    assert digest(module(SOURCE).f) == digest(module(SOURCE).f)


@pytest.mark.parametrize(
    "old, new",
    [
        ("CONSTANT = 3", "CONSTANT = 4"),
        ("CONSTANT = 3", "CONSTANT = 3.0"),
        ("CONSTANT = 3", "CONSTANT = True"),
        ('"block": 8', '"block": 16'),
        ('{"x": 3}', '{"x": 4}'),
        ('{"x": 3}', '{"y": 3}'),
        ("FAST = 1", "FAST = 3"),
        ("MODE = Mode.FAST", "MODE = Mode.SLOW"),
        ("size: int = 4", "size: int = 5"),
        ("Config()", "Config(rate=0.25)"),
        ("scale = 2", "scale = 3"),
        ("self.bias = 7", "self.bias = 8"),
        ("return x + 1", "return x + 2"),
        ("return 5", "return 6"),
        ("return cls()", "return None"),
        ("step=1", "step=2"),
        ("sign=1", "sign=-1"),
        ("step=4", "step=5"),
        ('static_argnames="stride"', 'static_argnames="shift"'),
        ('static_argnames="stride"', 'static_argnames="stride", donate_argnums=0'),
        ("jax.vmap(inner)", "jax.vmap(inner, out_axes=1)"),
        ("closing(3)", "closing(4)"),
        ("x * factor", "factor * x"),
        ("(i, 0)", "(0, i)"),
        ("(8, 128), block_map", "(8, 256), block_map"),
        ("inner(x_ref[...])", "-inner(x_ref[...])"),
        ("math.pi", "math.e"),
        ("jnp.sin(y)", "jnp.cos(y)"),
        ("CONSTANT = 3", "\n    CONSTANT = 3"),  # messages name lines
    ],
)
def test_an_edit_makes_another_digest(old, new):
    assert SOURCE.count(old) == 1
    assert digest(module(SOURCE.replace(old, new)).f) != digest(module(SOURCE).f)


def set_closure(m):
    m.closed.__closure__[0].cell_contents = 9


CHANGES = {
    "a global": lambda m: setattr(m, "CONSTANT", 4),
    "an item of a global": lambda m: m.TABLE.update(block=9),
    "an item added": lambda m: m.TABLE.update(more=9),
    "an item deep inside": lambda m: m.TABLE["deep"].append(9),
    "a closure": set_closure,
    "a default": lambda m: setattr(m.inner, "__defaults__", (2,)),
    "a keyword's default": lambda m: setattr(m.inner, "__kwdefaults__", {"sign": -1}),
    "a function's code": lambda m: setattr(m.inner, "__code__", m.Layer.helper.__code__),
    "a function's attribute": lambda m: setattr(m.inner, "mode", 1),
    "another function": lambda m: setattr(m, "inner", m.block_map),
    "a method": lambda m: setattr(m.Layer, "helper", staticmethod(lambda x: x)),
    "a class attribute": lambda m: setattr(m.Layer, "scale", 3),
    "an instance's attribute": lambda m: setattr(m.LAYER, "bias", 8),
    "an instance's method": lambda m: setattr(m.LAYER, "apply", len),
    "an attribute that hides the class's": lambda m: setattr(m.LAYER, "scale", 2),
    "a partial's function": lambda m: setattr(m, "partial", functools.partial(m.closed)),
    "another jitted function": lambda m: setattr(m, "jitted", jax.jit(m.closed)),
    "a module in the place of another": lambda m: setattr(m, "jnp", np),
    "a global that hides a built-in": lambda m: setattr(m, "staticmethod", 1),
    "a spec": lambda m: setattr(m.SPEC, "index_map", lambda i: (0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_python_runs_makes_another_digest(change):
    m = module(SOURCE + "\n    def g(x):\n        return f(x), staticmethod\n")
    before = digest(m.g)
    CHANGES[change](m)
    try:
        assert digest(m.g) != before
    except Unkeyable as error:
        assert "something that more uses has changed" in str(error)


def test_what_is_put_into_a_library_is_seen(monkeypatch):
    m = module(SOURCE)
    before = digest(m.f)
    monkeypatch.setattr(jnp, "sin", lambda x: x)
    changed = digest(m.f)
    monkeypatch.undo()
    digests = [before, changed]
    for place, name, value in (
        (math, "pi", 3.0),
        (jnp, "sin", jnp.cos),
        (jnp, "sin", math.sin),
        (jnp, "sin", functools.partial(jnp.sin, 1)),
        (jnp, "sin", jax.vmap(lambda x: x)),
        (pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True)),
        (pl, "pallas_call", functools.partial(pl.pallas_call, interpret=False)),
        # All of these say that they are what they stand in the place of.
        (pl, "pallas_call", functools.wraps(pl.pallas_call)(lambda *args: 1)),
        (pl, "pallas_call", functools.wraps(pl.pallas_call)(lambda *args: 2)),
        (jnp, "sin", functools.wraps(jnp.sin)(jax.vmap(jnp.cos, in_axes=0))),
        (jnp, "sin", functools.wraps(jnp.sin)(jax.vmap(jnp.cos, in_axes=1))),
        (jnp, "sin", jax.jit(jnp.sin.__wrapped__, static_argnums=0)),
        (jnp, "sin", jax.jit(jnp.sin.__wrapped__, donate_argnums=0)),
        (jnp, "sin", jax.custom_jvp(functools.wraps(jnp.sin)(lambda x: 1))),
        (jnp, "sin", jax.custom_jvp(functools.wraps(jnp.sin)(lambda x: 2))),
    ):
        with monkeypatch.context() as context:
            context.setattr(place, name, value)
            digests.append(digest(m.f))
    assert len(set(digests)) == len(digests)
    assert digest(m.f) == before


def test_a_ufunc_that_is_put_into_a_library_is_refused(monkeypatch):
    def asks(x):
        return np.sin(x) + scipy.special.gammaln(x)

    for place, name in ((np, "sin"), (scipy.special, "gammaln")):
        with monkeypatch.context() as context:
            before = digest(asks)
            context.setattr(place, name, np.frompyfunc(lambda x: x, 1, 1))
            with pytest.raises(Unkeyable, match="ufunc"):
                digest(asks)
    assert digest(asks) == before


def test_what_is_not_reached_makes_no_difference():
    other = SOURCE + "\n    UNUSED = object()\n    def unused(): return open('x')\n"
    assert digest(module(other).f) == digest(module(SOURCE).f)


def test_another_module_is_followed():
    helper = types.ModuleType("helper")
    helper.table = {"a": 1}
    m = module("def f(x):\n    return x + helper.table['a']\n", helper=helper)
    before = digest(m.f)
    helper.table["a"] = 2
    changed = digest(m.f)
    m = module("def f(x):\n    return x + getattr(helper, 'table')['a']\n", helper=helper)
    whole = digest(m.f)
    helper.more = 1
    assert len({before, changed, whole, digest(m.f)}) == 4


PATH_KEYS = (
    DictKey("a"), DictKey("b"), GetAttrKey("a"), DictKey(0), DictKey(False), SequenceKey(0),
    SequenceKey(1), FlattenedIndexKey(0), FlattenedIndexKey(1),
)  # fmt: skip


@pytest.mark.parametrize(
    "one, other",
    [
        (1, True), (1, 1.0), (0.0, -0.0), ("1", 1), (b"1", "1"), ((1, 2), [1, 2]), (None, "None"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ((1, (2, 3)), ((1, 2), 3)),
        (np.zeros(3), np.zeros(3, np.float32)), (np.zeros(4), np.zeros((2, 2))),
        (np.arange(4), np.arange(1, 5)), (np.float32(1), np.float64(1)),
        (jnp.zeros(3), np.zeros(3, np.float32)), (jnp.asarray(2), jnp.asarray(2, jnp.int32)),
        (np.dtype("int8"), np.dtype("int16")), (slice(1), slice(2)), (range(3), range(4)),
        (jax.ShapeDtypeStruct((8,), "f4"), jax.ShapeDtypeStruct((9,), "f4")),
        (pltpu.VMEM((8, 128), jnp.float32), pltpu.VMEM((8, 256), jnp.float32)),
        (pltpu.VMEM((8, 128), jnp.float32), pltpu.SMEM((8, 128), jnp.float32)),
        *itertools.combinations(PATH_KEYS, 2),
        (np.add, np.subtract), (scipy.special.gammaln, scipy.special.digamma),
    ],
    ids=repr,
)  # fmt: skip
def test_values_are_told_apart(one, other):
    assert digest(one) == digest(one) and digest(one) != digest(other)


def test_a_value_twice_is_not_two_values():
    shared = [1]
    assert digest([shared, shared]) != digest([[1], [1]])


def test_what_holds_itself_is_followed_once():
    loop: list = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)


@jax.tree_util.register_pytree_node_class
class Box:
    """A container that keeps something of its own beside what jit takes out of it."""

    def __init__(self, inside, own):
        self.inside, self.own = inside, own

    def tree_flatten(self):
        return (self.inside,), self.own

    @classmethod
    def tree_unflatten(cls, own, inside):
        return cls(*inside, own)


Pair, OtherPair = (collections.namedtuple(name, "x y") for name in ("Pair", "OtherPair"))

CONTAINERS = [
    1, None, (), [], {}, (1,), [1], (1, 2), (1, None), ((1, 2),), ((1,), 2), {"a": 1}, {"b": 1},
    {1: 1}, {"a": [1]}, {"a": (1,)}, collections.OrderedDict(a=1, b=2),
    collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=1),
    collections.defaultdict(tuple, a=1), Pair(1, 2),
    OtherPair(1, 2), Box(1, "a"), Box(1, "b"), Box((1,), "a"), Box(1, 1), Box(1, True),
    Box(1, (0.0,)), Box(1, (-0.0,)),
]  # fmt: skip


def test_forms_of_containers_are_told_apart():
    """Also where Python says that what they keep of their own is equal."""
    forms = [digest(jax.tree.structure(container)) for container in CONTAINERS]
    assert len(set(forms)) == len(CONTAINERS)
    assert forms == [digest(jax.tree.structure(container)) for container in CONTAINERS]


def test_what_a_container_keeps_of_its_own_must_be_readable():
    with pytest.raises(Unkeyable, match="lock"):
        digest(jax.tree.structure(Box(1, threading.Lock())))
    with pytest.raises(Unkeyable, match="registry"):  # for which None is no container
        digest(tree_util.none_leaf_registry.flatten((1, None))[1])


def test_how_a_container_is_taken_apart_is_read_with_its_form(monkeypatch):
    before = digest(jax.tree.structure(Box(1, "a")))
    monkeypatch.setattr(Box, "tree_unflatten", classmethod(lambda cls, own, inside: None))
    assert digest(jax.tree.structure(Box(1, "a"))) != before


def test_how_a_librarys_class_is_taken_apart_is_read():
    def registered(flatten):
        class Array(np.ndarray):
            pass

        Array.__module__, Array.__qualname__ = "numpy", "Array"
        jax.tree_util.register_pytree_node(Array, flatten, lambda own, inside: 1)
        return Array

    with pytest.raises(Unkeyable, match="another class"):
        digest(registered(lambda x: ((), 1)))


def wrapping(**options):
    """A function that holds what jit was told of another one."""
    return functools.wraps(jax.jit(lambda x, y: x, **options))(lambda x, y: x)


def test_what_wraps_a_jitted_function_is_read():
    numbered = ({name: n} for name in ("static_argnums", "donate_argnums") for n in (0, 1))
    ways = ({}, *numbered, {"inline": True})
    digests = [digest(wrapping(**options)) for options in ways]
    assert len(set(digests)) == len(ways)
    devices = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(Unkeyable, match="where"):
        digest(wrapping(in_shardings=devices))


def test_a_sharding_on_a_mesh_is_refused():
    mesh = jax.make_mesh((1,), ("x",))
    with pytest.raises(Unkeyable, match="devices"):
        digest(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))


def closing_over(**given):
    """Functions that close over a module."""
    made = module(
        """
        def asks(helper):
            return lambda x: helper.table["a"] + helper.inner.scale

        def asks_inside(helper):
            def f(x):
                def g(y):
                    return [y + helper.table["a"] + helper.inner.scale for _ in range(3)]
                return g(x)
            return f

        def asks_in_a_class(helper):
            def f(x):
                class Inside:
                    table = helper.table["a"] + helper.inner.scale
                return Inside.table
            return f

        def passes_on(helper):
            return lambda x: (helper.table, getattr(helper, "more"))

        def passes_on_inside(helper):
            return lambda x: (helper.table, lambda: vars_of(helper))

        def sets(helper):
            def f(x):
                helper.more = x
                return helper.table
            return f
        """,
        **given,
    )
    return made


def a_helper():
    helper = types.ModuleType("helper")
    helper.table, helper.more, helper.inner = {"a": 1}, 1, types.ModuleType("inner")
    helper.inner.scale = 2
    return helper


def changed(change):
    helper = a_helper()
    change(helper)
    return helper


@pytest.mark.parametrize("name", ["asks", "asks_inside"])
def test_of_a_module_in_a_closure_what_is_asked_of_it_is_read(name):
    def of(helper):
        return digest(getattr(closing_over(), name)(helper))

    before = of(a_helper())
    assert of(a_helper()) == before
    assert of(changed(lambda helper: vars(helper).update(more=2))) == before
    assert of(changed(lambda helper: vars(helper).update(more=LOCK))) == before
    assert of(changed(lambda helper: helper.table.update(a=2))) != before
    assert of(changed(lambda helper: vars(helper.inner).update(scale=3))) != before
    assert of(changed(lambda helper: vars(helper).pop("table"))) != before


@pytest.mark.parametrize("name", ["asks_in_a_class", "passes_on", "passes_on_inside", "sets"])
def test_a_module_in_a_closure_that_is_used_otherwise_is_read_whole(name):
    def of(helper):
        return digest(getattr(closing_over(), name)(helper))

    before = of(a_helper())
    assert of(a_helper()) == before
    assert of(changed(lambda helper: vars(helper).update(more=2))) != before
    with pytest.raises(Unkeyable, match="lock"):
        of(changed(lambda helper: vars(helper).update(more=LOCK)))


def test_a_librarys_module_in_a_closure():
    def over(module):
        return lambda x: module.sin(x)

    def of_random(module):
        return lambda x: module.random.rand()

    assert digest(over(jnp)) != digest(over(np))
    with pytest.raises(Unkeyable, match="numpy.random"):
        digest(of_random(np))
    with pytest.raises(Unkeyable, match="the module time"):
        digest(over(time))


@functools.lru_cache
def remembers(x):
    return x


RANDOM = np.random.default_rng(0)
LOCK = threading.Lock()
COUNT = 0


def reads_time(x):
    return x + time.time()


def reads_the_environment(x):
    return x + int(os.environ["HOME"])


def reads_random(x):
    return x + random.random()


def reads_numpy_random(x):
    return x + np.random.rand()


def reads_a_generator(x):
    return x + RANDOM.random()


def reads_a_file(x):
    return x + len(open("/tmp/x").read())


def evaluates(x):
    return eval("x + COUNT")


def asks_for_globals(x):
    return x + globals()["COUNT"]


def prints(x):
    print("tracing")
    return x


def sets_a_global(x):
    global COUNT
    COUNT += 1
    return x


def imports(x):
    import json

    return x + len(json.dumps({}))


def hides_numpy_random(x):
    import numpy

    return x + numpy.random.rand()


def passes_numpy_on(x, modules=(np,)):
    return x + modules[0].random.rand()


def holds_a_lock(x):
    return x if LOCK else -x


def asks_the_lru_cache(x):
    return x + remembers(1)


def reads_annotations(x):
    return x + len(reads_time.__annotations__)


def reads_closures(x):
    return Box.tree_flatten.__closure__[0].cell_contents


@pytest.mark.parametrize(
    "function, reason",
    [
        (reads_time, "time"),
        (reads_the_environment, "os"),
        (reads_random, "random"),
        (reads_numpy_random, "numpy.random"),
        (reads_a_generator, "Generator"),
        (reads_a_file, "open"),
        (evaluates, "eval"),
        (asks_for_globals, "globals"),
        (prints, "print"),
        (sets_a_global, "COUNT"),
        (imports, "json"),
        (hides_numpy_random, "numpy.random"),
        (passes_numpy_on, "passes the module numpy on"),
        (holds_a_lock, "lock"),
        (reads_annotations, "annotations"),
        (reads_closures, "__closure__"),
        (iter([1]), "iterator"),
        (jax.devices()[0], "Device"),
        (np.frompyfunc(lambda x: x, 1, 1), "ufunc"),
        (Primitive("users"), "primitive"),
        (np.array([object()]), "object"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_can_not_be_read_is_refused(function, reason):
    with pytest.raises(Unkeyable, match=reason):
        digest(function)


def test_results_of_earlier_calls_are_refused():
    remembers.cache_clear()
    before = digest(asks_the_lru_cache)
    remembers(1)
    with pytest.raises(Unkeyable, match="remembers"):
        digest(asks_the_lru_cache)
    remembers.cache_clear()
    assert digest(asks_the_lru_cache) == before


def test_a_partial_of_a_kind_of_its_own_is_refused():
    class Partial(functools.partial):
        pass

    with pytest.raises(Unkeyable):
        digest(Partial(len))


def test_slots_and_containers_of_ones_own_are_read():
    class Slots:
        __slots__ = ("a", "__b")

        def __init__(self, a, b):
            self.a, self.__b = a, b

    class Listed(list):
        pass

    assert digest(Slots(1, 2)) not in (digest(Slots(2, 2)), digest(Slots(1, 3)))
    assert digest(Listed([1])) not in (digest(Listed([2])), digest([1]))


def test_a_container_that_jax_takes_apart():
    @jax.tree_util.register_pytree_node_class
    class Pair:
        def tree_flatten(self):
            return (1,), "a"

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls()

    before = digest(Pair)
    Pair.tree_flatten = lambda self: ((1,), "b")
    assert digest(Pair) != before


def test_a_jitted_function_that_changed_is_refused():
    """JAX may go on with what it traced before."""
    m = module(SOURCE)
    before = digest(m.f)
    m.CONSTANT = 4
    with pytest.raises(Unkeyable, match="more"):
        digest(m.f)
    m.CONSTANT = 3
    assert digest(m.f) == before


def test_a_jitted_function_that_calls_itself():
    m = module("import jax\n@jax.jit\ndef f(x):\n    return f(x) if K else x\nK = 1\n")
    before = digest(m.f)
    other = module("import jax\n@jax.jit\ndef f(x):\n    return f(x) if K else x\nK = 2\n")
    assert digest(other.f) != before
