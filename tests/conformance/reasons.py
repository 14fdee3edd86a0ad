"""Why a test fails under the shim, where its own message doesn't say it.

The first pattern (of `fnmatch`) that fits FILE::CLASS::TEST counts, in both modes.
"""

_SPLIT = (
    "compares a matrix product with XLA's to the last bit; with eight rows XLA divides the sum "
    "between its threads, so its last bits depend on how many cores there are"
)

REASONS = {
    "ops_test::OpsInterpretTest::test_dot_general_multiple_non_contracting_dims*": _SPLIT,
    "tpu_pallas_interpret_test::InterpretTest::test_correct_number_of_stores*": (
        "counts the calls of a function inside JAX's interpreter, which isn't used; its values "
        "are right"
    ),
}
