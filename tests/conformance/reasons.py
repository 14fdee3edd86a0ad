"""Why a test fails under the shim, where its own message doesn't say it.

The first pattern (of `fnmatch`) that fits FILE::CLASS::TEST counts, in both modes.
"""

REASONS = {
    "tpu_pallas_interpret_test::InterpretTest::test_correct_number_of_stores*": (
        "counts the calls of a function inside JAX's interpreter, which isn't used; its values "
        "are right"
    ),
}
