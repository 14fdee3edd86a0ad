"""Where blocks start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.blocks import clamped

INTEGERS = (np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64)


@pytest.mark.parametrize("dtype", INTEGERS)
@given(st.data())
def test_many_starts_are_clamped_like_one(dtype, data):
    info = np.iinfo(dtype)
    starts = st.integers(int(info.min), int(info.max)) | st.integers(max(info.min, -99), 99)
    at = np.array(data.draw(st.lists(starts, min_size=1)), dtype)
    dim = data.draw(st.integers(1, 99))
    size, scale = data.draw(st.integers(0, dim)), data.draw(st.sampled_from((1, 2, 128)))
    want = [memory.clamped(int(start) * scale, dim, size) for start in at]
    assert clamped(at, scale, dim, size).tolist() == want
