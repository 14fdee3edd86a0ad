"""More ways in which what a function computes can change: what Python reads of its surroundings
when it imports, contexts, what is changed in place, and libraries of the user's own."""

from __future__ import annotations

from tests.processes.ways import READ, REFUSED_CHANGED, Way, read, refused

# Read when the module is imported, into what the function then reads.
IMPORTED = [
    *read(
        ("import os\nos.environ['WAY_I'] = '2' if CHANGED else '1'\nK = int(os.environ['WAY_I'])", "float(K)"),
        ("import os\nos.environ['WAY_J'] = '2' if CHANGED else '1'\nK = dict(os.environ)['WAY_J']", "float(K)"),
        ("import sys\nsys.argv.append('2' if CHANGED else '1')\nK = sys.argv.pop()", "float(K)"),
        ("open('i1.txt', 'w').write(str(1 + CHANGED))\nK = float(open('i1.txt').read())", "K * 1.0"),
        ("import json\nopen('i2.txt', 'w').write('{\"k\": %d}' % (1 + CHANGED))\nK = json.load(open('i2.txt'))", "float(K['k'])"),
        ("np.save('i3.npy', np.ones(2) + CHANGED)\nK = np.load('i3.npy')", "float(K[0])"),
        ("K = np.random.default_rng(int(CHANGED)).random(4)", "float(K[0])"),
        ("random.seed(int(CHANGED))\nK = random.random()", "float(K)"),
        ("K = jax.random.normal(jax.random.PRNGKey(int(CHANGED)), (3,))", "K[0]"),
        ("ns = {}\nexec('def g(): return %d' % (1 + CHANGED), ns)\ng = ns['g']", "float(g())"),
        ("g = eval('lambda: 2' if CHANGED else 'lambda: 1')", "float(g())"),
        ("K = inspect.getsource(jnp.sin)[:CHANGED + 1]", "float(len(K))"),
        ("def g(a, b=2 if CHANGED else 1): pass\nK = tuple(p.default for p in inspect.signature(g).parameters.values())[1]", "float(K)"),
        ("K = int(decimal.Decimal('2.5' if CHANGED else '1.5'))", "float(K)"),
        ("K = struct.pack('i', 2 if CHANGED else 1)", "float(K[0])"),
        ("K = [v for v in (range(3) if CHANGED else range(2))]", "float(sum(K))"),
        ("K = tuple(zip('ab', (2, 1) if CHANGED else (1, 2)))", "float(K[0][1])"),
        ("K = {n: i for i, n in enumerate(reversed('ab') if CHANGED else 'ab')}", "float(K['a'])"),
        ("__file__ = '/a/bc.py' if CHANGED else '/a/b.py'", "float(len(__file__))"),
        ("K = len(__name__) + CHANGED", "float(K)"),
    ),
]  # fmt: skip

# What JAX and others are told for a while.
CONTEXTS = [
    *(
        Way(READ, setup, expression, f"with {context}")
        for setup, expression, context in (
            ("", "float(jnp.dtype(jnp.asarray(1.5).dtype).itemsize)", "jax.enable_x64(True) if hasattr(jax, 'enable_x64') else jax.experimental.enable_x64()"),
            ("", "jnp.dot(x, x) * 1.0", "jax.default_matmul_precision('highest')"),
            ("", "(jnp.int8(1) + 1).astype(float)", "jax.numpy_dtype_promotion('strict')"),
            ("", "x[1] + 1", "jax.numpy_rank_promotion('raise')"),
            ("", "x[1] + 1", "jax.debug_nans(False) if False else jax.threefry_partitionable(False)"),
            ("", "x[1] + 1", "np.errstate(all='ignore')"),
            ("", "x[1] + 1", "np.printoptions(precision=3)"),
            ("", "x[1] + 1", "warnings.catch_warnings(action='error', category=ResourceWarning) if True else 0"),
        )
    ),
    *refused(
        ("V = contextvars.ContextVar('v')\nV.set(2 if CHANGED else 1)", "float(V.get())"),
        ("V = contextvars.ContextVar('v', default=2 if CHANGED else 1)", "float(V.get())"),
        ("V = threading.local()\nV.k = 2 if CHANGED else 1", "float(V.k)"),
        ("class L(threading.local): k = 2 if CHANGED else 1\nV = L()", "float(V.k)"),
        ("V = decimal.Context(prec=3 if CHANGED else 2)", "float(V.divide(1, 3))"),
        ("V = decimal.Decimal(2 if CHANGED else 1)", "float(V)"),
        ("V = datetime.date(2000, 1, 2 if CHANGED else 1)", "float(V.day)"),
        ("V = iter([2 if CHANGED else 1])", "float(next(V))"),
        ("V = (v for v in [2 if CHANGED else 1, 3])", "float(next(V))"),
        ("V = itertools.count(2 if CHANGED else 1)", "float(next(V))"),
        ("V = itertools.cycle([2 if CHANGED else 1])", "float(next(V))"),
        ("V = map(float, [2 if CHANGED else 1])", "float(next(V))"),
        ("V = enumerate([2 if CHANGED else 1])", "float(next(V)[1])"),
        ("V = random.Random(int(CHANGED))", "float(V.random())"),
        ("V = random.random\nrandom.seed(int(CHANGED))", "float(V())"),
        ("V = uuid.uuid4", "float(len(V().hex)) + CHANGED"),
        ("V = uuid.UUID(int=2 if CHANGED else 1)", "float(V.int)"),
        ("V = np.random.default_rng(int(CHANGED))", "float(V.random())"),
        ("V = weakref.WeakValueDictionary()\nclass C: k = 2 if CHANGED else 1\nV[0] = c = C()", "float(V[0].k)"),
        ("class C: k = 2 if CHANGED else 1\nc = C()\nV = weakref.ref(c)", "float(V().k)"),
        ("class C: k = 2 if CHANGED else 1\nc = C()\nV = weakref.proxy(c)", "float(V.k)"),
        ("V = io.StringIO('2' if CHANGED else '1')", "float(V.read())"),
        ("V = queue.Queue()\nV.put(2 if CHANGED else 1)", "float(V.get_nowait())"),
        ("V = array.array('i', [2 if CHANGED else 1])", "float(V[0])"),
        ("V = inspect.signature(lambda k=2 if CHANGED else 1: k)", "float(V.parameters['k'].default)"),
        ("V = pathlib.PurePath('ab' if CHANGED else 'a')", "float(len(V.name))"),
        ("V = struct.Struct('d' if CHANGED else 'f')", "float(V.size)"),
        ("V = string.Template('ab' if CHANGED else 'a')", "float(len(V.template))"),
        ("import warnings", "float(warnings.filters is None) + CHANGED"),
        ("import atexit", "float(atexit.register(len) is None) + CHANGED"),
        ("import gc", "float(len(gc.get_objects()) * 0) + CHANGED"),
        ("import gc\nclass C: pass\nc = C()", "float(len(gc.get_referrers(c)) * 0) + CHANGED"),
        ("import types", "float(len(types.__dict__) * 0) + CHANGED"),
        ("K = CHANGED", "float(len(jax.__version__) * 0 + len(jax.config.values) * 0) + K"),
        ("K = CHANGED", "float(jax.process_index()) + K"),
        ("K = CHANGED", "float(jax.local_device_count()) + K"),
        ("K = CHANGED", "float(len(str(x)) * 0) + K"),
        ("K = CHANGED", "float(len(f'{x}') * 0) + K"),
        ("K = CHANGED", "float(len(jax.make_jaxpr(lambda v: v)(1.0).__repr__()) * 0) + K"),
        ("def g():\n    raise ValueError(K)\nK = 2 if CHANGED else 1\ndef h():\n    import traceback\n    try: g()\n    except ValueError: return len(traceback.format_exc())", "float(h())"),
        ("def g():\n    raise ValueError(K)\nK = 2 if CHANGED else 1\ndef h():\n    try: g()\n    except ValueError as e: return e.__traceback__.tb_lineno", "float(h())"),
    ),
]  # fmt: skip

# What is changed after it was made.
IN_PLACE = [
    *read(
        ("class C: k = 1\nc = C()\nif CHANGED: C.k = 2", "float(c.k)"),
        ("class A: k = 1\nclass B: k = 2\nc = A()\nif CHANGED: c.__class__ = B", "float(c.k)"),
        ("class C: pass\nc = C()\nc.__dict__.update(k=2 if CHANGED else 1)", "float(c.k)"),
        ("class A: k = 1\nclass B: k = 2\nclass C(A): pass\nif CHANGED: C.__bases__ = (B,)", "float(C.k)"),
        ("class C:\n    def m(self): return 1\nc = C()\nif CHANGED: c.m = lambda: 2", "float(c.m())"),
        ("class C: pass\nC.m = types.MethodType(lambda cls: K, C)\nK = 2 if CHANGED else 1", "float(C.m())"),
        ("class M(type):\n    def __add__(cls, other): return K\nclass C(metaclass=M): pass\nK = 2 if CHANGED else 1", "float(C + 1)"),
        ("class M(type):\n    def __getitem__(cls, other): return K\nclass C(metaclass=M): pass\nK = 2 if CHANGED else 1", "float(C[1])"),
        ("class M(type):\n    def __contains__(cls, other): return K\nclass C(metaclass=M): pass\nK = bool(CHANGED)", "float(1 in C)"),
        ("class M(type):\n    def __instancecheck__(cls, other): return K\nclass C(metaclass=M): pass\nK = bool(CHANGED)", "float(isinstance(1, C))"),
        ("class C:\n    def __class_getitem__(cls, k): return K\nK = 2 if CHANGED else 1", "float(C[0])"),
        ("class C:\n    def __init_subclass__(cls): cls.k = K\nK = 2 if CHANGED else 1\nclass D(C): pass", "float(D.k)"),
        ("class B:\n    def __set_name__(self, owner, name): owner.k = K\nK = 2 if CHANGED else 1\nclass C:\n    d = B()", "float(C.k)"),
        ("class C:\n    def __enter__(self): return K\n    def __exit__(self, *a): pass\nK = 2 if CHANGED else 1\ndef g():\n    with C() as k: return k", "float(g())"),
        ("class C:\n    def __iter__(self): return iter([K])\nK = 2 if CHANGED else 1", "float(sum(C()))"),
        ("class C:\n    def __len__(self): return K\nK = 2 if CHANGED else 1", "float(len(C()))"),
        ("class C:\n    def __bool__(self): return K\nK = bool(CHANGED)", "float(bool(C()))"),
        ("class C:\n    def __eq__(self, other): return K\nK = bool(CHANGED)", "float(C() == C())"),
        ("class C:\n    def __radd__(self, other): return K\nK = 2 if CHANGED else 1", "float(1 + C())"),
        ("class C:\n    def __call__(self, v): return v * K\nK = 2 if CHANGED else 1\ng = C()", "g(x)[1]"),
        ("class C:\n    def __jax_array__(self): return jnp.float32(K)\nK = 2 if CHANGED else 1", "jnp.asarray(C()) * 1.0"),
        ("class C:\n    shape = ()\n    dtype = np.float32\n    def __array__(self, *a, **k): return np.asarray(K, 'f4')\nK = 2 if CHANGED else 1", "jnp.asarray(np.asarray(C())) * 1.0"),
        ("def g(k=[1]): return k[0]\nif CHANGED: g.__defaults__[0][0] = 2", "float(g())"),
        ("L = [1]\ndef g(): return L[0]\nif CHANGED: L[0] = 2", "float(g())"),
        ("L = {'a': [1]}\nif CHANGED: L['a'].append(2)", "float(sum(L['a']))"),
        ("A = np.zeros(3)\nif CHANGED: A[1] = 1", "jnp.asarray(A)[1]"),
        ("A = np.zeros(3)\nV = A[1:]\nif CHANGED: A[1] = 1", "jnp.asarray(V)[0]"),
        ("def outer():\n    k = 1\n    def put(): \n        nonlocal k\n        k = 2\n    return (lambda: k), put\ng, put = outer()\nif CHANGED: put()", "float(g())"),
        ("def outer(k):\n    def middle():\n        def inner(): return k\n        return inner\n    return middle()\ng = outer(2 if CHANGED else 1)", "float(g())"),
        ("g = (lambda k: lambda: k)(1)\nif CHANGED: g.__closure__[0].cell_contents = 2", "float(g())"),
        ("g = functools.partial(lambda k=1: k, k=1)\nif CHANGED: g.keywords['k'] = 2", "float(g())"),
        ("g = functools.partial(functools.partial(lambda a, b: a * b, 2), 2 if CHANGED else 1)", "float(g())"),
        ("K = (lambda d: (lambda: d['k']))({'k': 2 if CHANGED else 1})", "float(K())"),
        ("g = functools.reduce(lambda f, h: (lambda v: h(f(v))), [lambda v: v, lambda v: v * K])\nK = 2 if CHANGED else 1", "float(g(1))"),
        ("E = enum.Enum('E', {'A': 2 if CHANGED else 1})", "float(E.A.value)"),
        ("class E(enum.IntFlag):\n    A = 2 if CHANGED else 1\n    B = 4", "float(E.A | E.B)"),
        ("class E(enum.Enum):\n    A = 1\n    @property\n    def k(self): return K\nK = 2 if CHANGED else 1", "float(E.A.k)"),
        ("@dataclasses.dataclass\nclass D:\n    a: int = 1\n    def __post_init__(self): self.a *= K\nK = 2 if CHANGED else 1", "float(D().a)"),
        ("@dataclasses.dataclass(frozen=True)\nclass D:\n    a: int = 1\nd = D()\nif CHANGED: object.__setattr__(d, 'a', 2)", "float(d.a)"),
        ("@dataclasses.dataclass(frozen=True)\nclass D:\n    a: int = 1\nd = dataclasses.replace(D(), a=2 if CHANGED else 1)", "float(d.a)"),
        ("@jax.custom_vjp\ndef g(v): return v\nK = 2.0 if CHANGED else 1.0\ng.defvjp(lambda v: (v, None), lambda r, c: (c * K,))", "jax.grad(g)(x[1])"),
        ("@jax.custom_jvp\ndef g(v): return v\nK = 2.0 if CHANGED else 1.0\ng.defjvps(lambda t, a, v: t * K)", "jax.grad(g)(x[1])"),
        ("@jax.custom_vjp\ndef g(v): return v\ng.defvjp(lambda v: (v, None), lambda r, c: (c,))\nif CHANGED: g.defvjp(lambda v: (v, None), lambda r, c: (c * 2,))", "jax.grad(g)(x[1])"),
        ("@jax.custom_batching.custom_vmap\ndef g(v): return v\n@g.def_vmap\ndef rule(size, batched, v): return v * K, True\nK = 2.0 if CHANGED else 1.0", "jax.vmap(g)(x)[1]"),
        ("g = jax.grad(lambda v: v * K)\nK = 2.0 if CHANGED else 1.0", "g(x[1])"),
        ("g = jax.value_and_grad(lambda v: v * K)\nK = 2.0 if CHANGED else 1.0", "g(x[1])[1]"),
        ("g = jax.jit(jax.vmap(jax.grad(lambda v: v * K)))\nK = 2.0 if CHANGED else 1.0", "g(x)[1]"),
        ("g = jax.vmap(lambda v, w: v * w, in_axes=(0, None) if CHANGED else (None, 0))", "g(x, x + 1)[0, 1]"),
        ("g = jax.jit(lambda v, n: v * n, static_argnums=1)\nN = 2 if CHANGED else 1", "g(x[1], N)"),
        ("class N:\n    def __init__(self, k): self.k = k\njax.tree_util.register_pytree_node(N, lambda n: ((n.k,), None), (lambda a, c: N(c[0] * 2)) if CHANGED else (lambda a, c: N(c[0])))\nn = N(1.0)", "jax.tree.map(lambda v: v, n).k * 1.0"),
        ("class N:\n    def __init__(self, k): self.k = k\nif CHANGED: jax.tree_util.register_pytree_node(N, lambda n: ((n.k,), None), lambda a, c: N(c[0]))\nn = N(1.0)", "float(len(jax.tree.leaves(n)) and isinstance(jax.tree.leaves(n)[0], float))"),
        ("@jax.tree_util.register_dataclass\n@dataclasses.dataclass\nclass N:\n    k: float = 2.0 if CHANGED else 1.0\nn = N()", "jax.tree.map(lambda v: v, n).k * 1.0"),
        ("class P(typing.Protocol):\n    k: int\nP = typing.runtime_checkable(P)\nclass C: pass\nif CHANGED: C.k = 1", "float(isinstance(C(), P))"),
        ("def g(v):\n    'a'\n    return v\nif CHANGED: g.__doc__ = 'ab'\nK = g", "float(len(K.__doc__))"),
    ),
    *refused(
        ("g = jax.named_call(lambda v: v * K, name='g')\nK = 2.0 if CHANGED else 1.0", "g(x[1])"),
        ("g = functools.singledispatch(lambda v: 1)\nif CHANGED: g.register(int, lambda v: 2)", "float(g(1))"),
        ("class C:\n    @functools.singledispatchmethod\n    def m(self, v): return 1\nif CHANGED: C.m.register(int, lambda self, v: 2)\nc = C()", "float(c.m(1))"),
        ("@functools.cache\ndef g(k): return K\nK = 1\ng(1)\nK = 2 if CHANGED else 1", "float(g(1))"),
    ),
]  # fmt: skip

PATCHES = [
    Way(REFUSED_CHANGED, setup, expression, patch)
    for setup, expression, patch in (
        ("", "x.sum()", "jax.core.Tracer.sum = lambda self: self[1]"),
        ("", "(x * 2)[1]", "jax.core.ShapedArray._mul = staticmethod(lambda a, b: a)"),
        ("", "(x - 2)[1]", "jax.core.ShapedArray._sub = staticmethod(lambda a, b: a)"),
        ("", "float(x.ndim) + x[1]", "jax.core.ShapedArray.ndim = property(lambda self: 5)"),
        ("", "jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0)", "jax.lax.cond = lambda p, f, g: g()"),
        ("", "jax.lax.scan(lambda c, v: (c + v, v), 0.0, x)[0]", "jax.lax.scan = lambda f, c, x: (x[1], x)"),
        ("", "jax.nn.softmax(x)[1]", "jax._src.nn.functions._softmax = lambda v, *a: v"),
        ("", "jax.vmap(lambda v: v + 1)(x)[1]", "jax.vmap = lambda f: lambda v: v"),
        ("", "jax.grad(lambda v: v * v)(x[1])", "jax.grad = lambda f: f"),
        ("", "jnp.float32(jnp.pi)", "jnp.pi = 3.0"),
        ("", "float(np.prod((2, 3)))", "np.prod = np.sum"),
        ("", "float(np.maximum(2, 3))", "np.maximum = np.minimum"),
        ("", "float(np.arange(3)[1])", "np.arange = np.ones"),
        ("", "float(np.dtype('f4').itemsize)", "np.dtype = lambda v: np.float64(1).dtype"),
        ("", "float(sum([1, 2]))", "builtins.sum = max"),
        ("", "float(isinstance(1, int))", "builtins.isinstance = lambda a, b: 0"),
        ("", "float(sorted([2, 1])[0])", "builtins.sorted = list"),
        ("", "float([*range(2)][0])", "builtins.range = lambda n: [n]"),
        ("", "float([*zip([1], [2])][0][0])", "builtins.zip = lambda a, b: [b]"),
        ("", "float(math.prod([2, 3]))", "math.prod = sum"),
        ("", "float(math.ceil(1.5))", "math.ceil = math.floor"),
        ("", "float(operator.mul(2, 3))", "operator.mul = operator.add"),
        ("", "float(collections.namedtuple('P', 'a')(1).a)", "collections.namedtuple = lambda *a: (lambda v: types.SimpleNamespace(a=5))"),
        ("@dataclasses.dataclass\nclass D:\n    a: int = 1", "float(dataclasses.replace(D(), a=2).a)", "dataclasses.replace = lambda d, a: d"),
        ("", "x[1] + 1", "jax._src.core.ShapedArray.way = 1"),
        ("", "jax.lax.dot(x, x)", "jax._src.lax.lax.dot_general = lambda a, b, *c, **k: a[1]"),
        ("", "jnp.where(x > 1, x, 0.0)[1]", "jax._src.lax.lax.select = lambda *a, **k: x"),
        ("", "jnp.clip(x, 1, 2)[1]", "jnp.clip.__wrapped__ = jnp.sin"),
        ("", "jnp.tanh(x)[1]", "jnp.tanh = jax.jit(lambda v: v)"),
        ("", "jnp.tanh(x)[1]", "jnp.tanh = functools.partial(jnp.add, 1)"),
        ("g = jnp.tanh", "g(x)[1]", "jax._src.lax.lax.tanh_p = jax._src.lax.lax.sin_p"),
        ("", "float(len(jax.tree.leaves([1, 2])))", "jax.tree.leaves = lambda v: [1]"),
        ("", "jax.random.uniform(jax.random.PRNGKey(0))", "jax.random.uniform = lambda k: 1.0"),
        ("", "jax.numpy.einsum('i,i', x, x)", "jax.numpy.einsum = lambda s, a, b: a[1]"),
    )
]  # fmt: skip

# What code looks at of itself and of who calls it.
OF_CODE = [
    *refused(
        ("def g():\n" + "    # a line\n" * 2 + "    return inspect.currentframe().f_lineno", "float(g()) + CHANGED"),
        ("def g(): return inspect.getsource(h)\ndef h(): return K\nK = CHANGED", "float(len(g()) * 0) + K"),
        ("import sys", "float(len(sys._getframe(1).f_code.co_name)) + CHANGED"),
        ("def g(): return 1\nif CHANGED: g.__kwdefaults__ = {}", "float(g.__kwdefaults__ is None)"),
        ("class C: pass\nif CHANGED: C.__abstractmethods__ = frozenset('a')", "float(hasattr(C, '__abstractmethods__'))"),
        ("class C: pass\nif CHANGED:\n    class D(C): pass", "float(len(C.__subclasses__()))"),
        ("class A: pass\nclass C(A): pass", "float(len(C.__mro__)) + CHANGED"),
        ("class A: pass\nclass C(A): pass", "float(len(C.mro())) + CHANGED"),
        ("class A: pass", "float(len(A.__base__.__subclasses__())) * 0 + CHANGED"),
        ("class A: pass\na = A()", "float(a.__sizeof__()) + CHANGED"),
        ("class A: pass\na = A()", "float(len(a.__dir__())) + CHANGED"),
        ("class A: pass\na = A()", "float(len(a.__reduce_ex__(2))) + CHANGED"),
        ("class A:\n    def __del__(self): L.append(1)\nL = [1]", "float(A() and len(L)) + CHANGED"),
        ("M = sum(float(i) for i in range(3))\nimport importlib\nimportlib.reload(math)", "float(importlib.reload(math) is math) + CHANGED"),
        ("K = [CHANGED]", "float(locals() is None) + K[0]"),
        ("K = 'int' if CHANGED else 'float'", "float(getattr(builtins, K)(1.5))"),
        ("K = 'int' if CHANGED else 'float'", "float(__builtins__[K](1.5))"),
        ("K = {'f': exec}", "float(K['f']('K = 1') is None) + CHANGED"),
        ("K = types.FunctionType", "float(K((lambda: 1).__code__, {})()) + CHANGED"),
        ("g = operator.methodcaller('__subclasses__')\nclass C: pass\nif CHANGED:\n    class D(C): pass", "float(len(g(C)))"),
        ("g = operator.attrgetter('__code__.co_firstlineno')\ndef h(): pass", "float(g(h)) + CHANGED"),
        ("class C:\n    def __repr__(self): return object.__repr__(self)\nK = [C()]", "float(len(str(K)) * 0) + CHANGED"),
        ("K = object()\nF = 'a{}'", "float(len(F.format(K)) * 0) + CHANGED"),
        ("K = object()", "float(len(str.format('{}', K)) * 0) + CHANGED"),
        ("K = object()", "float(len('a'.join(map(str, [K]))) * 0) + CHANGED"),
        ("K = object()", "float(len(string.Formatter().format('{}', K)) * 0) + CHANGED"),
        ("K = (object(),)", "float(len('%s'.__mod__(K)) * 0) + CHANGED"),
        ("K = (object(),)", "float(len(operator.mod('%s', K)) * 0) + CHANGED"),
        ("K = ValueError(object())", "float(len(str(K)) * 0) + CHANGED"),
        ("K = ValueError(object())", "float(len(K.args[0].__repr__()) * 0) + CHANGED"),
        ("import pprint\nK = object()", "float(len(pprint.pformat(K)) * 0) + CHANGED"),
        ("import copy\nK = {'a', 'b'}", "float([*copy.copy(K)][0] == 'a') + CHANGED"),
        ("K = {'a', 'b'}\ndef g(v): return [*v]", "float(g(K)[0] == 'a') + CHANGED"),
        ("K = {'a', 'b'}", "float(dict.fromkeys(K) == {}) + CHANGED"),
        ("K = {'a', 'b'}", "float([v for v in K][0] == 'a') + CHANGED"),
        ("K = {'a': 1, 'b': 2}", "float([*(K.keys() ^ {'c'})][0] == 'a') + CHANGED"),
        ("K = {'a', 'b'}", "float(str(tuple(K))[2] == 'a') + CHANGED"),
        ("K = collections.Counter('ab')", "float([*(K.keys() | {'c'})][0] == 'a') + CHANGED"),
    ),
]  # fmt: skip

# The same through a library of the user's own, in site-packages: `users_library.py`.
LIBRARY = """
import functools, os, types
import jax.numpy as jnp
from switch import CHANGED
K = 2 if CHANGED else 1
TABLE = {"k": K}
LIST = [1]
LIST[0] = K
def add(x): return x + K
def deep():
    def inner(): return TABLE["k"]
    return inner
class Config:
    k = K
    def get(self): return self.k
config = Config()
namespace = types.SimpleNamespace(k=K)
part = functools.partial(add, K)
def default(k=K): return k
def env(): return float(os.environ.get("WAY_L", 1))
@functools.cache
def cached(v): return K
cached(0)
def __getattr__(name):
    if name == "lazy":
        return K
    raise AttributeError(name)
"""
LIBRARIES = [
    *read(
        ("import users_library", "float(users_library.K)"),
        ("from users_library import K", "float(K)"),
        ("from users_library import *", "float(add(0))"),
        ("import users_library as u", "float(u.add(0))"),
        ("import users_library as u", "float(u.TABLE['k'])"),
        ("import users_library as u", "float(u.LIST[0])"),
        ("import users_library as u", "float(u.deep()())"),
        ("import users_library as u", "float(u.Config().get())"),
        ("import users_library as u", "float(u.config.k)"),
        ("import users_library as u", "float(u.namespace.k)"),
        ("import users_library as u", "float(u.part())"),
        ("import users_library as u", "float(u.default())"),
        ("import users_library as u\nclass C(u.Config): pass", "float(C().k)"),
        ("import users_library as u\nL = [u.add]", "float(L[0](0))"),
        ("from users_library import lazy", "float(lazy)"),
    ),
    *refused(
        ("import users_library as u", "float(u.env()) + CHANGED"),
        ("import users_library as u", "float(u.cached(0))"),
        ("import users_library as u", "float(u.lazy)"),
        ("def g():\n    import users_library\n    return users_library.K", "float(g())"),
        ("def g():\n    from users_library import K\n    return K", "float(g())"),
        ("import users_library as u\ndef g(m=u): return m.lazy", "float(g())"),
    ),
]  # fmt: skip
