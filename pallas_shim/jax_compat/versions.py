"""The versions of JAX that the shim supports and is tested on. Nothing else says them by hand.

It imports nothing, so scripts/test.sh can read it before any JAX is installed.
tests/jax_compat/test_version.py checks that setup.cfg and docs/limits.md agree with it.
"""

OLDEST = "0.8.0"
TOO_NEW = "0.13"  # the first version that is refused

# The whole test suite runs on these, at every change.
TESTED = ("0.8.0", "0.10.2", "0.12.0.1")
# Only `python -m pallas_shim doctor` runs on these. JAX's internals differ in each.
BETWEEN = ("0.9.0", "0.9.2", "0.10.1", "0.11.2")
# Ruff, mypy, the import contracts and the tests that don't depend on JAX run on this one only.
CHECKED_ON = "0.10.2"


def pythons(version: str) -> tuple[str, ...]:
    """The Pythons to test a version of JAX on, the preferred one first, as "3.13"."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return ("3.11",) if (major, minor) < (0, 11) else ("3.13", "3.12")
