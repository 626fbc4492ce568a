"""Options that a command line has twice."""

import pytest

from tests.cli.conftest import RunCli


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("recall --mixer based --dry-run --seed 0 --seed 1", "--seed is given 2 times; the last counts: 1."),
        ("compare a b --filter x --filter=y --filter z", "--filter is given 3 times; the last counts: z."),
        ("plot pareto --results a --results nowhere", "--results is given 2 times; the last counts: nowhere."),
    ],
)
def test_the_last_counts_and_a_warning_tells(run_cli: RunCli, line: str, told: str) -> None:
    assert run_cli(*line.split()).stderr.count(told) == 1


def test_a_mixers_own_option_has_a_list_for_several_values(run_cli: RunCli) -> None:
    outcome = run_cli("recall", "--mixer", "based", "--feature-dim", "8", "--feature_dim=16", "--dry-run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert "--feature_dim is given twice; several values are a list, such as [8,16]." in outcome.stderr


def test_what_counts_several_times_and_flags_may_be_repeated(run_cli: RunCli) -> None:
    assert not run_cli("list", "runs", "--status", "ok", "--status", "oom", "--results", "results/reference/cpu").stderr
    assert not run_cli("recall", "--mixer", "based", "--dry-run", "--dry-run").stderr
