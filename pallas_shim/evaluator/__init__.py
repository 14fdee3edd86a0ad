"""The evaluator: jaxprs in, NumPy programs out. Knows nothing of patches or settings."""
