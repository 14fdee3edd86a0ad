"""Freed memory is used again, instead of being faulted in anew."""

import platform
import resource
import subprocess
import sys

ROUNDS, SIZE = 50, 1 << 18
# Five arrays of that size come and go in each round.
SCRIPT = f"""
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from pallas_shim.evaluator.heap import keep_freed_memory
    keep_freed_memory()
x = np.ones({SIZE} // 4, np.float32)
def chain(x):
    a = x + x
    b = a * x
    c = b - a
    return (c + x) * b
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
chain(x)
before = faults()
for _ in range({ROUNDS}):
    chain(x)
print(faults() - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_arrays_that_come_and_go_are_not_faulted_in_again():
    pages = ROUNDS * SIZE // resource.getpagesize()
    assert faults("keep") < pages // 10
    if platform.libc_ver()[0] == "glibc":
        assert faults("leave") > pages
