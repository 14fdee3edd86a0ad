"""Tests that need libtpu are collected only where it is installed: scripts/chip.sh."""

from __future__ import annotations

import importlib.util

from tests.shimmed import setting, shim  # noqa: F401

collect_ignore = [] if importlib.util.find_spec("libtpu") else ["with_libtpu"]
