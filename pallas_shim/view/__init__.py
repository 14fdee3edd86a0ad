"""Pictures of what kernels did: one HTML page, and a trace for Perfetto. It knows data, not JAX."""
