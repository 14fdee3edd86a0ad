"""Random kernels, run in the evaluator and in JAX's interpreter."""
