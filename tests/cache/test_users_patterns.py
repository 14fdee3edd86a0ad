"""What users commonly write is kept by the function cache: refusing it would be sound, but no
use."""

from __future__ import annotations

import gc
import sys
import textwrap
import types

import jax
import numpy as np
import pytest

from pallas_shim.cache import later, pristine
from pallas_shim.reports.uses import REPORT
from tests.shimmed import setting, shim

__all__ = ["setting", "shim"]

HEAD = """
import collections
import dataclasses
import enum
import functools
import logging
import math
import operator
from typing import Any, Callable, NamedTuple, Optional, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from functools import partial

def add_one(x_ref, o_ref):
    o_ref[...] = x_ref[...] + 1

def call(kernel, x, **given):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True, **given)(x)
"""

# Each defines `f`, which is jitted unless it is already.
PATTERNS = {
    "a static argument by name": """
        @functools.partial(jax.jit, static_argnames=("n",))
        def g(x, n=2):
            return call(add_one, x) * n
        def f(x):
            return g(x, n=3)
    """,
    "jit with static arguments, called": """
        @partial(jax.jit, static_argnames=["n", "name"])
        def g(x, *, n=2, name="a"):
            return call(add_one, x) * n
        f = lambda x: g(x, n=3, name="b")
    """,
    "a function that is jitted and called plainly": """
        def g(x):
            return call(add_one, x)
        jitted = jax.jit(g)
        def f(x):
            return g(x) + jitted(x)
    """,
    "jitted within": """
        @jax.jit
        def f(x):
            @jax.jit
            def inner(v):
                return call(add_one, v)
            return inner(x) + 1
    """,
    "a factory": """
        def make(scale, bias=1):
            def kernel(x_ref, o_ref):
                o_ref[...] = x_ref[...] * scale + bias
            return kernel
        KERNELS = {s: make(s) for s in (2, 3)}
        def f(x):
            return sum(call(k, x) for k in KERNELS.values())
    """,
    "a partial kernel": """
        def kernel(x_ref, o_ref, *, n):
            o_ref[...] = x_ref[...] * n
        def f(x):
            return call(functools.partial(kernel, n=3), x)
    """,
    "a dataclass": """
        @dataclasses.dataclass(frozen=True)
        class Config:
            block: int = 8
            scale: float = 2.0
            dtypes: tuple[Any, ...] = (jnp.float32,)
            names: list[str] = dataclasses.field(default_factory=list)
            @property
            def half(self) -> int:
                return self.block // 2
            def doubled(self):
                return dataclasses.replace(self, scale=self.scale * 2)
        CONFIG = Config()
        def f(x, config=CONFIG.doubled()):
            own = Config(block=4)
            return call(add_one, x) * config.scale + own.half
    """,
    "an enum": """
        class Mode(enum.Enum):
            FAST = "fast"
            SLOW = "slow"
        class Level(enum.IntEnum):
            LOW = 1
            HIGH = 2
        class Flag(enum.Flag):
            A = enum.auto()
            B = enum.auto()
        def f(x, mode=Mode.FAST):
            y = call(add_one, x) if mode == Mode.FAST else x
            if mode is Mode.SLOW or Level.LOW > Level.HIGH or not Flag.A & (Flag.A | Flag.B):
                return x
            return y * Level.HIGH + len(Mode("slow").name)
    """,
    "a named tuple": """
        class Params(NamedTuple):
            w: Any
            b: Any = 1.0
        Old = collections.namedtuple("Old", "a b")
        def f(x):
            p = Params(w=x)._replace(b=2.0)
            w, b = p
            return call(add_one, w) + p.b + Old(1, 2).b + b
    """,
    "f-strings in messages": """
        def f(x):
            if x.ndim != 1:
                raise ValueError(f"x has {x.ndim} dimensions, shape {x.shape} and type {x!r}")
            assert x.shape[0] % 8 == 0, f"{x.shape} of {x}"
            return call(add_one, x)
    """,
    "f-strings in names": """
        def f(x):
            n = x.shape[0]
            return call(add_one, x, name=f"add_{n}_{x.dtype.name}")
    """,
    "pl.when and loops": """
        def kernel(x_ref, o_ref):
            i = pl.program_id(0)
            @pl.when(i == 0)
            def _():
                o_ref[...] = jnp.zeros_like(o_ref)
            def body(j, carry):
                return carry + x_ref[j] * i
            o_ref[...] += lax.fori_loop(0, 8, body, jnp.float32(0))
        def f(x):
            return call(kernel, x, grid=(2,))
    """,
    "scan, while and cond": """
        def f(x):
            y, _ = lax.scan(lambda c, v: (c + v, None), jnp.float32(0), x)
            z = lax.while_loop(lambda c: c < 3, lambda c: c + 1, y)
            w = lax.cond(z > 0, lambda v: v, lambda v: -v, x)
            s = lax.switch(0, [lambda v: v, lambda v: v * 2], w)
            return call(add_one, s) + z
    """,
    "vmap and grad": """
        @jax.custom_vjp
        def g(x):
            return call(add_one, x)
        def forward(x):
            return g(x), x
        def backward(saved, ct):
            return (ct * saved,)
        g.defvjp(forward, backward)
        grad = jax.grad(lambda x: g(x).sum())
        def f(x):
            return grad(x) + jax.vmap(lambda v: call(add_one, v))(x[None])[0]
    """,
    "a global gradient": """
        def g(x):
            return (x * x).sum()
        grad = jax.grad(g)
        value = jax.value_and_grad(g)
        def f(x):
            return call(add_one, grad(x)) + value(x)[0]
    """,
    "a table of types": """
        SIZES = {jnp.dtype("float32"): 8, jnp.dtype("int8"): 32, np.dtype("f2"): 16}
        NAMES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
        SMALL = {jnp.float16, jnp.bfloat16}
        def f(x):
            n = SIZES[x.dtype]
            if x.dtype in SMALL or x.dtype == jnp.bfloat16:
                n += 1
            return call(add_one, x.astype(NAMES["f32"])) * n
    """,
    "sets that are looked into": """
        KNOWN = {"a", "b"}
        def f(x, name="a"):
            if name not in KNOWN or name in {"c", "d"}:
                raise ValueError(name)
            return call(add_one, x) * len(KNOWN)
    """,
    "comprehensions": """
        SHAPE = (2, 3)
        def f(x):
            pairs = [(i, n) for i, n in enumerate(SHAPE)]
            table = {i: n * 2 for i, n in pairs if n > 1}
            total = sum(a * b for a, b in zip(SHAPE, reversed(SHAPE)))
            largest = max(sorted(table.values())) + min(range(1, 3)) + any(map(bool, SHAPE))
            first, *rest = sorted(table.items(), key=lambda kv: -kv[1])
            return call(add_one, x) * total + largest + len(rest) + first[0]
    """,
    "mathematics": """
        def f(x):
            n = functools.reduce(operator.mul, x.shape, 1)
            m = math.prod(x.shape) + math.ceil(math.log2(n)) + math.isqrt(n) + round(math.pi)
            return call(add_one, x) * (n + m + pl.cdiv(n, 3) + np.prod(x.shape) + int(np.ceil(1.5)))
    """,
    "hints and defaults": """
        Array = jax.Array
        def g(x: Array, n: int | None = None, *, fn: Callable[[Array], Array] = jnp.sin,
              shape: Optional[Sequence[int]] = (1,), dtype: Any = jnp.float32) -> tuple[Array, int]:
            y: Array = fn(x).astype(dtype)
            return y, n or len(shape)
        def f(x: Array) -> Array:
            y, n = g(x)
            return call(add_one, y) * n
    """,
    "captured data": """
        DATA = np.random.default_rng(0).standard_normal(8).astype(np.float32)
        ON_DEVICE = jnp.asarray(DATA)
        MASK = np.arange(8) % 2 == 0
        KEY = np.float32(3)
        def f(x):
            return call(add_one, x * DATA) + ON_DEVICE + jnp.where(MASK, KEY, 0)
    """,
    "a named scope": """
        def f(x):
            with jax.named_scope("adding"):
                y = call(add_one, x)
            with jax.named_scope(f"more_{x.shape[0]}"):
                return y + 1
    """,
    "a class with methods": """
        class Layer:
            width: int = 2
            def __init__(self, scale, fn=jnp.tanh):
                self.scale = scale
                self.fn = fn
                self._cache = {}
            def __call__(self, x):
                return self._apply(x) * self.width
            def _apply(self, x):
                return call(add_one, self.fn(x)) * self.scale
        class Deep(Layer):
            def _apply(self, x):
                return super()._apply(x) + 1
        LAYER = Deep(2.0)
        def f(x):
            return LAYER(x)
    """,
    "a method that is jitted": """
        class Model:
            def __init__(self):
                self.scale = 3.0
            @functools.partial(jax.jit, static_argnums=0)
            def run(self, x):
                return call(add_one, x) * self.scale
        MODEL = Model()
        f = lambda x: MODEL.run(x)
    """,
    "a grid and blocks": """
        BLOCK = 4
        def index(i):
            return (i,)
        def f(x):
            n = x.shape[0]
            spec = pl.BlockSpec((BLOCK,), index)
            return call(add_one, x, grid=(pl.cdiv(n, BLOCK),), in_specs=[spec],
                        out_specs=pl.BlockSpec((BLOCK,), lambda i: (i,)),
                        cost_estimate=pl.CostEstimate(flops=n, bytes_accessed=0,
                                                      transcendentals=0),
                        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)))
    """,
    "scratch": """
        def kernel(x_ref, o_ref, acc_ref):
            acc_ref[...] = x_ref[...]
            o_ref[...] = acc_ref[...] * 2
        def f(x):
            spec = pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=0, grid=(1,),
                in_specs=[pl.BlockSpec((8,), lambda i: (0,))],
                out_specs=pl.BlockSpec((8,), lambda i: (0,)),
                scratch_shapes=[pltpu.VMEM((8,), jnp.float32)])
            return pl.pallas_call(kernel, grid_spec=spec, interpret=True,
                                  out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
    """,
    "trees": """
        PARAMS = {"w": jnp.ones(8), "b": [jnp.zeros(8), 2.0]}
        def f(x):
            tree = jax.tree.map(lambda p: p * 2, PARAMS)
            leaves, form = jax.tree.flatten(tree)
            tree = jax.tree.unflatten(form, leaves)
            return call(add_one, x * tree["w"]) + tree["b"][0] + jax.tree_util.tree_leaves(tree)[1]
    """,
    "a tree of the user's": """
        @jax.tree_util.register_pytree_node_class
        @dataclasses.dataclass
        class State:
            x: Any
            n: int
            def tree_flatten(self):
                return (self.x,), self.n
            @classmethod
            def tree_unflatten(cls, aux, children):
                return cls(*children, aux)
        def f(x):
            state = jax.tree.map(lambda v: v + 1, State(x, 2))
            return call(add_one, state.x) * state.n
    """,
    "a registered dataclass": """
        @functools.partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=["n"])
        @dataclasses.dataclass
        class State:
            x: Any
            n: int = 2
        @jax.jit
        def g(state):
            return call(add_one, state.x) * state.n
        f = lambda x: g(State(x))
    """,
    "checks of types": """
        def f(x, axis=0, dtype=None):
            dtype = dtype or x.dtype
            if not isinstance(axis, int) or not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(f"axis {axis!r}, {dtype}")
            if hasattr(x, "aval") and callable(f) and getattr(x, "weak_type", False):
                pass
            y = x.astype(jnp.promote_types(dtype, jnp.bfloat16))
            return call(add_one, y) * jnp.finfo(dtype).bits + jnp.iinfo(jnp.int8).max
    """,
    "a wrapped function": """
        def checked(fn):
            @functools.wraps(fn)
            def wrapper(*args, **kwargs):
                if not args:
                    raise TypeError("no arguments")
                return fn(*args, **kwargs)
            return wrapper
        @checked
        def g(x, *, n=2):
            return call(add_one, x) * n
        def f(x):
            return g(x, n=3)
    """,
    "exceptions that are caught": """
        SIZES = {}
        def size(x):
            try:
                return SIZES[x.shape[0]]
            except (KeyError, IndexError):
                return x.size
            finally:
                pass
        def f(x):
            return call(add_one, x) * size(x)
    """,
    "match": """
        def f(x, how="sum"):
            match how:
                case "sum":
                    n = 2
                case "max" | "min":
                    n = 3
                case _:
                    raise NotImplementedError(how)
            return call(add_one, x) * n
    """,
    "lists that are filled": """
        def f(x):
            parts = []
            for i in range(2):
                parts.append(call(add_one, x[i * 4:(i + 1) * 4]))
            out = {}
            out["y"] = jnp.concatenate(parts, axis=0)
            out.setdefault("z", 1)
            out.update(w=2)
            return out["y"] * out["z"] + out.get("w", 0) + len([p for p in parts if p.ndim])
    """,
    "generators": """
        def pieces(x):
            for i in range(2):
                yield x[i * 4:(i + 1) * 4]
        def f(x):
            return jnp.concatenate([call(add_one, p) for p in pieces(x)])
    """,
    "recursion": """
        def tree_sum(parts):
            if len(parts) == 1:
                return parts[0]
            half = len(parts) // 2
            return tree_sum(parts[:half]) + tree_sum(parts[half:])
        def f(x):
            return call(add_one, x) * tree_sum([x[i] for i in range(4)])
    """,
    "types of one's own": """
        from typing import TypeVar, Generic, Protocol
        T = TypeVar("T")
        class Op(Protocol):
            def __call__(self, x): ...
        class Box(Generic[T]):
            def __init__(self, value: T):
                self.value = value
        BOX = Box(3)
        def apply(op: Op, x):
            return op(x)
        def f(x):
            return apply(lambda v: call(add_one, v), x) * BOX.value
    """,
    "an abstract class": """
        import abc
        class Base(abc.ABC):
            @abc.abstractmethod
            def run(self, x): ...
        class Own(Base):
            def run(self, x):
                return call(add_one, x)
        OWN = Own()
        def f(x):
            return OWN.run(x) if isinstance(OWN, Base) else x
    """,
    "random numbers": """
        def f(x):
            key = jax.random.key(0)
            k1, k2 = jax.random.split(key)
            return call(add_one, x) + jax.random.uniform(k1, x.shape) + jax.random.normal(k2, (8,))
    """,
    "checkpointing": """
        g = jax.checkpoint(lambda x: call(add_one, x) * 2)
        def f(x):
            return g(x)
    """,
    "a warning": """
        import warnings
        def f(x):
            if x.shape[0] > 100:
                warnings.warn("large")
            return call(add_one, x)
    """,
    "a text that is looked at": """
        MODES = "fast,slow".split(",")
        def f(x, mode="fast"):
            name = mode.lower().strip()
            if name.startswith("f") and name in MODES and "_".join(MODES).count("_") == 1:
                return call(add_one, x)
            return x
    """,
    "einsum and linear algebra": """
        def f(x):
            m = jnp.einsum("i,j->ij", x, x, precision=lax.Precision.HIGHEST)
            m = m @ m.T + jnp.linalg.norm(m) + lax.dot_general(m, m, (((1,), (0,)), ((), ())))
            return call(add_one, m[0])
    """,
    "updates at indices": """
        def f(x):
            y = x.at[0].set(1.0).at[1:3].add(2.0)
            z = lax.dynamic_update_slice(y, x[:2], (0,))
            return call(add_one, z.at[-1].multiply(2.0)) + y[::-1] + jnp.take(x, 1)
    """,
    "arguments with stars": """
        def g(*args, scale=1.0, **kwargs):
            return [call(add_one, a) * scale * kwargs.get("n", 1) for a in args]
        def f(x):
            return sum(g(*[x, x], **{"scale": 2.0, "n": 3}))
    """,
}


@pytest.fixture
def keeping(shim, setting, tmp_path):
    later._put_off.clear()
    pristine.forget()  # the other tests' patches
    setting(cache=str(tmp_path))
    yield
    later._put_off.clear()
    sys.modules.pop("users_module", None)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_users_write_is_kept_and_read(keeping, pattern):
    source = HEAD + textwrap.dedent(PATTERNS[pattern])
    x = np.arange(8, dtype=np.float32)

    def became():
        jax.clear_caches()
        REPORT.clear()
        made = types.ModuleType("users_module")
        made.__file__ = "/users_module.py"
        sys.modules["users_module"] = made
        exec(compile(source, made.__file__, "exec"), vars(made))
        f = made.f if hasattr(made.f, "lower") else jax.jit(made.f)
        result = np.asarray(f(x))
        later.do_all()
        return {row["cache"] for row in REPORT.rows()}, result.tolist()

    how, written = became()
    assert how == {"written"}
    how, read = became()
    assert (how, read) == ({"read"}, written)


def test_callbacks_of_garbage_collection_are_not_tracings(keeping):
    def callback(phase, info):
        len(info)

    before = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        test_what_users_write_is_kept_and_read(keeping, next(iter(PATTERNS)))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(callback)
