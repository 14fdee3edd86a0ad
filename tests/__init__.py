"""The tests. None of them reads or writes the user's cache of programs."""

import os

os.environ.setdefault("PALLAS_NUMPY_CACHE", "0")
