"""What the examples share: how a call is timed."""

import time

import jax


def measure(f, *args, repeats=10):
    """Runs ``f(*args)``; prints the seconds of the first call, the milliseconds of later ones.

    Returns the result.
    """
    start = time.perf_counter()
    result = jax.block_until_ready(f(*args))
    print(f"first call: {time.perf_counter() - start:.3f} s")
    warm = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        warm.append(time.perf_counter() - start)
    warm.sort()
    print(
        f"warm: {warm[len(warm) // 2] * 1e3:.3f} ms"
        f" (of {repeats} calls: {warm[0] * 1e3:.3f} to {warm[-1] * 1e3:.3f})"
    )
    return result
