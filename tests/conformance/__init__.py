"""JAX's own tests of Pallas, run on stock JAX and under the shim: python -m tests.conformance."""
