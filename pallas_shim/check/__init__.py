"""Collects and shows the mistakes found in checked kernels."""
