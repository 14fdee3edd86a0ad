"""Tests that need libtpu: scripts/chip.sh runs them."""
