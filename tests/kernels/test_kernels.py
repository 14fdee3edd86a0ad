"""Each whole kernel gives in the evaluator what it gives in JAX's interpreter."""

import pytest

from tests.kernels import blocks, control, memory, numeric, refs, transforms
from tests.kernels.harness import cases, check

CASES = cases(blocks, control, memory, numeric, refs, transforms)


@pytest.mark.parametrize("name", CASES)
def test_kernel(name):
    check(CASES[name])
