"""What is changed in JAX while the shim is on: one module a thing, each change with its undoing."""
