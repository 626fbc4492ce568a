"""`--deterministic`: runs on a GPU that give the same bits each time, on the same device with the same versions.

Most of a run does so anyway (docs/REPRODUCTION.md, "The same run twice"). What does not is PyTorch's fused attention,
whose backward adds up blocks in the order in which they finish, and possibly cuBLAS on several streams. It is asked for
by environment variables: workers inherit them, and rows have them in their fingerprint.
"""

import os

import torch

VARIABLE = "BASEDBENCH_DETERMINISTIC"
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def ask() -> None:
    """From here on, worker processes started by this one run deterministically."""
    os.environ[VARIABLE] = "1"
    os.environ.setdefault(*WORKSPACE)


def obey() -> None:
    """In a worker, before anything runs: if it was asked for, attention is two products and a softmax."""
    if os.environ.get(VARIABLE) != "1":
        return
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
