"""Random kernels give in the evaluator what they give in JAX's interpreter."""

import pytest
from hypothesis import given, settings

from tests.fuzz.check import GENERATORS, check, check_cached, check_natively, quiet, sources
from tests.shimmed import setting

__all__ = ["setting"]

EXAMPLES = 25


@pytest.mark.parametrize("kind", GENERATORS)
def test_random_kernels(kind):
    compared, drawn = 0, max(EXAMPLES * GENERATORS[kind][0] // 100, 5)

    @settings(quiet, derandomize=True, max_examples=drawn)
    @given(sources)
    def run(source):
        nonlocal compared
        compared += check(source, kind)

    run()
    # JAX's TPU interpreter refuses many more, such as those that visit a block again.
    assert compared >= (0.4 if kind == "checked" else 0.8) * drawn


@pytest.mark.parametrize("kind", ("natively", "scalars", "wide"))
def test_random_native_code(kind):
    pytest.importorskip("llvmlite")
    reasons = []

    @settings(quiet, derandomize=True, max_examples=10)
    @given(sources)
    def run(source):
        reasons.extend(check_natively(source, kind))

    run()
    assert reasons.count("") >= 0.1 * len(reasons)


@pytest.mark.parametrize("kind", ("cells", "keys", "programs"))
def test_random_programs_from_disk(kind, tmp_path, setting):
    setting(cache=str(tmp_path), cache_verify=True)
    became = []

    @settings(quiet, derandomize=True, max_examples=5)
    @given(sources)
    def run(source):
        became.append(check_cached(source, kind))

    run()
    assert "read after tracing" in became
