"""The evaluator: jaxprs in, NumPy programs out. Knows nothing of patches or settings.

The door is `compiler`. It isn't imported here: the start of a process imports `registry`, and is
to import neither JAX nor NumPy.
"""
