"""The Triton kernels without a GPU: their tests, run by Triton's interpreter in processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "triton"
# Processes to run them in, so that several cores share the work: each imports torch anew.
PARTS = 8


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests of tests/kernels/triton run on the GPU itself")
@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_by_the_interpreter(part):
    files = [str(file) for file in sorted(FOLDER.glob("test_*.py"))[part::PARTS]]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", *files]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=FOLDER.parents[2], check=False
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
