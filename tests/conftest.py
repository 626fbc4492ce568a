"""One thread for each process of tests: with two processes on two cores, more only spin against each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
