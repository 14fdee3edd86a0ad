"""The sitecustomize that was there before runs as if ours weren't there."""

from __future__ import annotations

import pytest

SHOW = """
import sys
mine = sys.modules.get("sitecustomize")
print(mine and mine.__file__, [p for p in sys.path if "sitecustomize_pkg" in p])
"""


@pytest.mark.parametrize("on", ["0", "1"])
def test_handed_on(python, tmp_path, on):
    file = tmp_path / "sitecustomize.py"
    file.write_text("print('theirs', __name__)")
    got = python.run("-c", SHOW, PYTHONPATH=str(tmp_path), PALLAS_NUMPY=on)
    assert (got.stdout, got.stderr) == (f"theirs sitecustomize\n{file} []\n", "")


@pytest.mark.parametrize("text", ["raise ValueError('theirs')", "import missing_of_theirs"])
def test_their_error_is_reported_as_python_does(python, tmp_path, text):
    (tmp_path / "sitecustomize.py").write_text(text)
    code = "import sys; print('pallas_shim' in sys.modules)"
    want = python.stock().run("-c", code, PYTHONPATH=str(tmp_path))
    got = python.run("-c", code, PYTHONPATH=str(tmp_path), PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == ("True\n", want.stderr)
