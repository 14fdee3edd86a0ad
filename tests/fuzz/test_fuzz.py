"""Random kernels give in the evaluator what they give in JAX's interpreter."""

from hypothesis import given, settings

from tests.fuzz.check import check, check_inexact, quiet, sources

EXAMPLES, INEXACT = 40, 15


def test_random_kernels():
    compared = 0

    @settings(quiet, derandomize=True, max_examples=EXAMPLES)
    @given(sources)
    def run(source):
        nonlocal compared
        compared += check(source)

    run()
    assert compared > 0.9 * EXAMPLES


@settings(quiet, derandomize=True, max_examples=INEXACT)
@given(sources)
def test_random_kernels_that_round(source):
    check_inexact(source)
