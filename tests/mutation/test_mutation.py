"""Some of the mutants, which `python -m tests.mutation` checks all of."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

SAMPLE = (
    "memory.double_buffered_copies", "tpu.rows_fetched_ahead", "tpu.column_sums",
    "blocks.edge_block_masked_row_sums", "blocks.scalar_prefetch_gather", "numeric.matmul_float32",
    "refs.an_alias_in_hbm", "triton.stencil", "ops.gpu.softmax", "devices.ring_reduce_scatter",
    "devices.permute_by", "devices.cores_that_pass_something_on",
)  # fmt: skip


def test_a_sample_of_mutants_is_found():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--show", "--only", *SAMPLE],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    faults = re.search(r"of (\d+) faults found", ran.stdout)
    assert faults and int(faults[1]) > 100, ran.stdout
