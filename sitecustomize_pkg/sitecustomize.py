"""Starts the shim in every Python process that has this directory on its PYTHONPATH.

Then it removes this directory from sys.path and imports the sitecustomize that this one hid. If
there is none, site handles the ImportError as it would without us.
"""

import os
import sys

import _pallas_shim_start

_here = os.path.dirname(os.path.abspath(__file__))


class _Beside:
    """Finds the pallas_shim of this checkout.

    The checkout isn't put on sys.path, because its tests and benchmarks could hide the user's.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "pallas_shim":
            return None
        # Python's own, which importlib.machinery would take half a millisecond to offer.
        (finder,) = [f for f in sys.meta_path if getattr(f, "__name__", "") == "PathFinder"]
        return finder.find_spec(name, [os.path.dirname(_here)])


sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]
sys.meta_path.insert(0, _Beside)
del sys.modules[__name__]
try:
    import sitecustomize  # noqa: F401
finally:
    _pallas_shim_start.begin()
