"""One module for each thing in JAX that is patched; found through entry points."""
