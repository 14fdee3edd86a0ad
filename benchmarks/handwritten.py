"""Compares kernels with hand-written NumPy, and with the machine's memory bandwidth.

    python benchmarks/handwritten.py [--docs docs] [--only WORD ...]

Each kernel is called until its native code has taken over. Then the kernel and the same function in
NumPy, written by hand, take turns, and the least time of each counts. So do kernels that are bound
by memory, and STREAM's triad. It needs llvmlite. The sorts of tallax are measured if it is on
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from kernels.attention import flash
from kernels.kernel import Built, normal
from kernels.matmuls import blocked
from kernels.normalisation import by_rows, layer_norm_kernel, softmax_kernel
from kernels.sorts import bitonic, tallax_sort
from measured import figure, seconds
from tables import machine, table

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # has pallas_shim if not installed

import pallas_shim
from pallas_shim.dispatch import background
from pallas_shim.evaluator.codegen.native import machine as machine_code

# Relative to the largest value, how far results may lie from one another.
_RTOL = 1e-5
# The least time of so many turns counts, or of as many as take so many seconds.
_TURNS, _SECONDS = 1000, 2.0
# The processor's seconds in which new native code proves itself.
_CHECKED = 1.0


# -- by hand --------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    weights = x - x.max(axis=1, keepdims=True)
    np.exp(weights, weights)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    centred *= 1 / np.sqrt(variance + np.float32(1e-6))
    centred *= gain
    centred += bias
    return centred


def gelu(x: np.ndarray) -> np.ndarray:
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32((2 / np.pi) ** 0.5)
    np.tanh(inner, inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = q @ k.swapaxes(-1, -2)
    scores *= np.float32(q.shape[-1] ** -0.5)
    length = q.shape[-2]
    scores[..., ~np.tri(length, dtype=bool)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ v


def _steps(lanes: int) -> Iterator[tuple[int, int]]:
    """The sizes of the runs that are merged, and the distances of what is compared."""
    size = 2
    while size <= lanes:
        distance = size // 2
        while distance:
            yield size, distance
            distance //= 2
        size *= 2


def _halves(x: np.ndarray, size: int, distance: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is compared: the places of the smaller ones and of the larger ones."""
    rows, lanes = x.shape
    ways = 1 if size == lanes else 2  # up, and then down
    runs = x.reshape(rows, lanes // size // ways, ways, size // (2 * distance), 2, distance)
    halves = runs[:, :, 0, :, 0], runs[:, :, 0, :, 1]
    return [halves] if ways == 1 else [halves, (runs[:, :, 1, :, 1], runs[:, :, 1, :, 0])]


def sort(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    for size, distance in _steps(x.shape[1]):
        for low, high in _halves(x, size, distance):
            smaller = np.minimum(low, high)
            np.maximum(low, high, out=high)
            low[...] = smaller
    return x


def sort_with_positions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.copy()
    at = np.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape).copy()
    for size, distance in _steps(x.shape[1]):
        pairs = zip(_halves(x, size, distance), _halves(at, size, distance), strict=True)
        for (low, high), (low_at, high_at) in pairs:
            wrong = (low > high) | ((low == high) & (low_at > high_at))
            smaller, first = np.where(wrong, high, low), np.where(wrong, high_at, low_at)
            np.copyto(high, low, where=wrong)
            np.copyto(high_at, low_at, where=wrong)
            low[...], low_at[...] = smaller, first
    return x, at


class Pair(NamedTuple):
    """A kernel and the same by hand. ``needs``: the package that the kernel is from."""

    build: Callable[[], Built]
    by_hand: Callable[..., Any]
    needs: str | None = None


def matmul(size: int, block: int) -> Built:
    return blocked(normal(size, size), normal(size, size, seed=1), block=block)


PAIRS = {
    "bitonic sort 8x128 (tallax)": Pair(lambda: tallax_sort(normal(8, 128)), sort, "tallax"),
    "bitonic sort 8x8192 (tallax)": Pair(lambda: tallax_sort(normal(8, 8192)), sort, "tallax"),
    "bitonic sort 8x128 with positions": Pair(
        lambda: bitonic(normal(8, 128)), sort_with_positions
    ),
    "softmax 256x1024": Pair(lambda: by_rows(softmax_kernel, 256, 1024), softmax),
    "softmax 4096x1024": Pair(lambda: by_rows(softmax_kernel, 4096, 1024), softmax),
    "layer norm 512x1024": Pair(
        lambda: by_rows(layer_norm_kernel, 512, 1024, extra=2), layer_norm
    ),
    "layer norm 4096x1024": Pair(
        lambda: by_rows(layer_norm_kernel, 4096, 1024, extra=2), layer_norm
    ),
    "matmul 512, blocks of 128": Pair(lambda: matmul(512, 128), np.matmul),
    "matmul 2048, blocks of 512": Pair(lambda: matmul(2048, 512), np.matmul),
    "flash attention 4x512x128": Pair(lambda: flash(512), attention),
}  # fmt: skip


# -- bound by memory ------------------------------------------------------------------------------


def _add_kernel(x_ref, y_ref, out_ref):
    out_ref[...] = x_ref[...] + y_ref[...]


def _gelu_kernel(x_ref, out_ref):
    out_ref[...] = jax.nn.gelu(x_ref[...])


def _elementwise(kernel: Callable[..., None], operands: int, shape: tuple[int, int]) -> Built:
    spec = pl.BlockSpec((64, shape[1]), lambda i: (i, 0))
    out, grid = jax.ShapeDtypeStruct(shape, jnp.float32), (shape[0] // 64,)
    f = pl.pallas_call(kernel, out, grid=grid, in_specs=[spec] * operands, out_specs=spec)
    return f, tuple(normal(*shape, seed=seed) for seed in range(operands))


# Arrays of 16 MB, the largest that the C library keeps for the next call.
_SHAPE = (4096, 1024)
# The function, and how many arrays it has to read or write.
BOUND: dict[str, tuple[Callable[[], Built], int]] = {
    "vector add": (lambda: _elementwise(_add_kernel, 2, _SHAPE), 3),
    "gelu": (lambda: _elementwise(_gelu_kernel, 1, _SHAPE), 2),
    "layer norm": (lambda: by_rows(layer_norm_kernel, *_SHAPE, extra=2), 2),
    "softmax": (lambda: by_rows(softmax_kernel, *_SHAPE), 2),
}

_TRIAD = """
define void @triad(ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %count) #0 {
entry:
  br label %loop
loop:
  %n = phi i64 [0, %entry], [%next, %loop]
  %at_b = getelementptr float, ptr %b, i64 %n
  %at_c = getelementptr float, ptr %c, i64 %n
  %at_a = getelementptr float, ptr %a, i64 %n
  %x = load float, ptr %at_b, align 4
  %y = load float, ptr %at_c, align 4
  %product = fmul float %y, 3.0
  %sum = fadd float %x, %product
  store float %sum, ptr %at_a, align 4
  %next = add nsw i64 %n, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %end
end:
  ret void
}
"""


def triad(threads: int) -> Callable[[], object]:
    """STREAM's triad on arrays of the same size, by so many threads."""
    engine = machine_code.loaded(machine_code.object_code(_TRIAD + machine_code.attribute_group()))
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)
    function = kind(engine.get_function_address("triad"))
    arrays = [np.ones(_SHAPE, np.float32) for _ in range(3)]
    each, pool = arrays[0].size // threads, ThreadPoolExecutor(threads)

    def part(number: int) -> None:
        function(*[array.ctypes.data + 4 * each * number for array in arrays], each)

    def call(engine: object = engine) -> None:  # which has the code
        others = [pool.submit(part, number) for number in range(1, threads)]
        part(0)
        wait(others)

    return call


# -- measuring ------------------------------------------------------------------------------------


def settled(build: Callable[[], Built], processor_seconds: float) -> Callable[[], Any]:
    """A kernel's call, once it has run for so long, and nothing waits to be compiled."""
    f, args = build()
    jitted = jax.jit(f)

    def call() -> Any:
        return jax.block_until_ready(jitted(*args))

    until = time.process_time() + processor_seconds
    while time.process_time() < until:
        call()
    compiled = threading.Event()
    background.later(compiled.set)
    while not compiled.is_set():
        call()
    until = time.process_time() + _CHECKED  # what was compiled is compared before it is used
    while time.process_time() < until:
        call()
    return call


def in_turn(*calls: Callable[[], Any]) -> list[float]:
    """The least time of each call: seconds."""
    least, until = [float("inf")] * len(calls), time.perf_counter() + _SECONDS
    for _ in range(_TURNS):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            result = call()
            least[number] = min(least[number], time.perf_counter() - start)
            del result
        if time.perf_counter() > until:
            break
    return least


def check(name: str, results: Any, expected: Any) -> None:
    for result, wanted in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        most = np.abs(wanted).max()
        if not np.allclose(result, wanted, rtol=0, atol=_RTOL * most):
            sys.exit(f"{name}: the results differ")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="kernels whose name holds one")
    parser.add_argument("--settle", type=float, default=6.0, metavar="S",
                        help="the processor's seconds before a kernel is measured")
    parser.add_argument("--docs", type=pathlib.Path, metavar="DIR",
                        help="writes handwritten.md there")
    options = parser.parse_args(arguments)
    os.environ.setdefault("PALLAS_NUMPY_CACHE", "0")
    pallas_shim.activate()

    def chosen(name: str) -> bool:
        return not options.only or any(word in name for word in options.only)

    rows = []
    for name, pair in PAIRS.items():
        if not chosen(name) or pair.needs and importlib.util.find_spec(pair.needs) is None:
            continue
        ours = settled(pair.build, options.settle)
        arrays = [np.asarray(arg) for arg in pair.build()[1]]
        check(name, ours(), pair.by_hand(*arrays))
        us, by_hand = in_turn(ours, lambda: pair.by_hand(*arrays))  # noqa: B023
        rows.append([name, seconds(us), seconds(by_hand), f"{us / by_hand:.2f}"])
        print(*rows[-1], file=sys.stderr)
    bound = []
    counts = sorted({1, len(os.sched_getaffinity(0))})
    nbytes = 3 * 4 * _SHAPE[0] * _SHAPE[1]
    for name, (build, arrays_moved) in BOUND.items():
        if not chosen(name):
            continue
        streams = [triad(threads) for threads in counts]
        us, *them = in_turn(settled(build, options.settle), *streams)
        moved = [nbytes / 3 * arrays_moved / us, *[nbytes / it for it in them]]
        ratios = [f"{moved[0] / it:.0%}" for it in moved[1:]]
        bound.append([name, seconds(us), *[figure(n / 1e9) for n in moved], *ratios])
        print(*bound[-1], file=sys.stderr)
    by = [f"{count} thread{'s' if count > 1 else ''}" for count in counts]
    text = "\n\n".join([
        "# Beside hand-written NumPy",
        "<!-- Generated by python benchmarks/handwritten.py --docs docs; don't edit. -->",
        f"JAX {jax.__version__}, NumPy {np.__version__}, {machine()}. Kernels run in native code,"
        " where they can have it. Times are the least of many calls, in turn with what they are"
        " compared with.",
        "## The same function by hand",
        "The NumPy versions take care: they write over arrays that they no longer need.",
        table(["kernel", "shim", "by hand", "shim / by hand"], rows).rstrip(),
        "## The machine's memory",
        "STREAM's triad (`a = b + 3 * c`) moves as many bytes as it can. The arrays have"
        f" {_SHAPE[0]}x{_SHAPE[1]} float32s. Each array that a kernel has to read or write counts"
        " once.",
        table(
            ["kernel", "warm call", "GB/s", *[f"triad's GB/s, {count}" for count in by],
             *[f"kernel / triad of {count}" for count in by]],
            bound,
        ).rstrip(),
    ]) + "\n"
    print(text)
    if options.docs:
        (options.docs / "handwritten.md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
