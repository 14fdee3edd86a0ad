"""Random kernels give in the evaluator what they give in JAX's interpreter."""

from hypothesis import given, settings

from tests.fuzz.check import check, quiet, sources

EXAMPLES = 50


def test_random_kernels():
    compared = 0

    @settings(quiet, derandomize=True, max_examples=EXAMPLES)
    @given(sources)
    def run(source):
        nonlocal compared
        compared += check(source)

    run()
    assert compared > 0.9 * EXAMPLES
