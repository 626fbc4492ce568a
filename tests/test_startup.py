"""`basedbench --help` answers at once: it imports nothing heavy."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "triton", "pandas", "pyarrow", "matplotlib", "numpy", "yaml", "scipy"}

RUN = """
import json, resource, sys
from basedbench.cli import main
sys.argv = ["basedbench", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    loaded = sorted(name for name in sys.modules if "." not in name)
    print(json.dumps([exit.code, loaded, usage.ru_utime + usage.ru_stime]), file=sys.stderr)
"""


# typer itself may use pydantic to read the values of a command's options, so only the first two are free of it.
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], HEAVY | {"pydantic"}),
        (["--version"], HEAVY | {"pydantic"}),
        (["list", "--help"], HEAVY),
        (["results", "show", "--help"], HEAVY),
    ],
)
def test_help_imports_nothing_heavy(arguments, heavy, record_property):
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    code, loaded, cpu_s = json.loads(done.stderr)
    record_property("cpu_s", cpu_s)  # below 0.3 s is the aim
    assert code == 0
    assert "basedbench" in done.stdout
    assert "basedbench" in loaded
    assert heavy & set(loaded) == set()
