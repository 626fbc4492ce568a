"""`basedbench env`."""

import json

from basedbench.store import code_version, fingerprint


def test_it_prints_the_fingerprint_as_a_table(run_cli):
    outcome = run_cli("env", "--device", "cpu")
    assert outcome.exit_code == 0
    cells = dict(line.strip().split(maxsplit=1) for line in outcome.stdout.splitlines() if len(line.split()) > 1)
    assert cells["code_version"].strip() == code_version()
    assert cells["torch"].strip() == fingerprint("cpu")["torch"]
    assert "peers: flash-linear-attention" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 100


def test_json_is_the_fingerprint_itself(run_cli):
    outcome = run_cli("env", "--device", "cpu", "--json")
    assert json.loads(outcome.stdout) == fingerprint("cpu")


def test_a_device_that_is_not_there_is_one_sentence(run_cli):
    outcome = run_cli("env", "--device", "cuda:99")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: there is no device 'cuda:99' on this machine; there are: cpu")
