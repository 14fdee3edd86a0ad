"""Changes in JAX while the shim is on: one module per change, each with its undoing."""
