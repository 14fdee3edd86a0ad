"""Why a test fails under the shim, where its own message doesn't say it.

The first pattern (of `fnmatch`) that fits FILE::CLASS::TEST counts, in both modes.
"""

_ORDER = (
    "compares a matrix product with XLA's to the last bit; XLA adds up most products term by term, "
    "as is done here, but not these of eight rows"
)

REASONS = {
    "ops_test::OpsInterpretTest::test_dot_general_multiple_non_contracting_dims*": _ORDER,
    "tpu_pallas_interpret_test::InterpretTest::test_correct_number_of_stores*": (
        "counts the calls of a function inside JAX's interpreter, which isn't used; its values "
        "are right"
    ),
}
