"""`basedbench compare` as a user and as a CI job runs it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from basedbench.config import load_suite
from basedbench.config.throughput import Case
from basedbench.store import Store
from basedbench.store.dataset import rows
from basedbench.store.schema import blank_row
from tests.cli.conftest import RunCli

MACHINE = {"cpu": "A", "cpu_usable": 2, "torch": "2.13"}
NOISE = [0.998, 1.002, 1.001, 0.999, 1.0, 1.003, 0.997, 1.0]


def write_time(out: Path, length: int, milliseconds: float, contender: str = "ours", **columns: Any) -> None:
    """A throughput row of the quick suite's Taylor cases."""
    spread = columns.pop("spread", 1.0)
    names = {"operator": "taylor_attention", "heads": 4, "key_dim": 16, "value_dim": 64, "dtype": "fp32", "mode": "fwd"}
    case = Case.model_validate(names | {"length": length, "contender": contender, "baseline": "attention/sdpa-flash"})
    medians = [milliseconds * (1 + spread * (factor - 1)) for factor in NOISE]
    row = blank_row("throughput") | case.model_dump() | {"suite": "quick-throughput", "case_id": case.id}
    row |= {"status": "ok", "median_ms": milliseconds, "round_medians_ms": medians, "device_name": "A"}
    Store(out).write("throughput", row | {"fingerprint": MACHINE, "throttled": False} | columns)


def write_decode(out: Path, case_id: str, milliseconds: float, **columns: Any) -> None:
    """A row of `throughput --models`."""
    no_operator = {"operator": None, "heads": None, "key_dim": None, "value_dim": None}
    model = {"model": "base_conv+mine d_model=16", "mode": "decode", "batch": 64, "suite": "own", "config": {}}
    write_time(out, 64, milliseconds, **no_operator, **model, case_id=case_id, **columns)


def write_recall(out: Path, accuracy: float, seed: int, **columns: Any) -> None:
    """A recall row."""
    row = blank_row("recall") | {"suite": "quick", "case_id": f"{seed:012d}", "seed": seed, "accuracy": accuracy}
    row |= {"mixer": "based", "config": {"feature_dim": 8}, "d_model": 32, "learning_rate": 0.01, "status": "ok"}
    Store(out).write("recall", row | {"fingerprint": MACHINE, "device": "cpu"} | columns)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "before", tmp_path / "after"


def test_every_verdict_and_the_exit_code(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for length, before, after in ((256, 1, 1), (512, 2, 1), (1024, 4, 5)):
        write_time(a, length, before)
        write_time(b, length, after)
    write_time(a, 2048, 10, spread=30)
    write_time(b, 2048, 10.1, spread=30)
    write_time(a, 4096, 20)
    outcome = run_cli("compare", a, b)
    assert outcome.exit_code == 1
    found = dict(re.findall(r"1x(\d+) .* (SAME|FASTER|SLOWER|UNCLEAR|MISSING) *$", outcome.stdout, re.MULTILINE))
    assert found == {"256": "SAME", "512": "FASTER", "1024": "SLOWER", "2048": "UNCLEAR", "4096": "MISSING"}
    assert "1 FASTER, 1 SLOWER, 1 SAME, 1 UNCLEAR, 1 MISSING: a regression (exit code 1)" in outcome.stdout
    assert "A and B were timed in runs of their own" in outcome.stdout
    assert "not in B" in outcome.stdout
    assert run_cli("compare", a, b, "--filter", "x(256|512) ").exit_code == 0
    assert run_cli("compare", a, b, "--filter", "x4096 ").exit_code == 3
    assert run_cli("compare", a, b, "--filter", "x2048 ").exit_code == 0
    assert run_cli("compare", a, b, "--filter", "x2048 ", "--fail-on", "slower,unclear").exit_code == 1
    assert run_cli("compare", a, b, "--filter", "x1024 ", "--threshold", "30%").exit_code == 0
    assert run_cli("compare", b, a, "--filter", "x(256|512) ").exit_code == 1
    counts = "1 FASTER, 1 SLOWER, 1 SAME, 1 UNCLEAR, 1 MISSING: a regression (exit code 1).\n"
    assert run_cli("compare", a, b, "--quiet").stdout == counts


def test_a_folder_is_the_same_as_itself(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    write_time(folders[0], 2048, 10, spread=30)
    outcome = run_cli("compare", folders[0], folders[0])
    assert outcome.exit_code == 0
    assert "In 1 of 1 cases A and B are one measurement, which tells nothing of how well" in outcome.stdout
    assert outcome.stdout.endswith("1 SAME: no regression (exit code 0).\n")
    write_time(folders[1], 2048, 10.1, spread=30)
    assert "one measurement" not in run_cli("compare", *folders).stdout


def test_a_ratio_has_digits_however_small_it_is(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    write_time(folders[0], 2048, 10)
    write_time(folders[1], 2048, 0.00375)
    assert "0.000375 0.000374 to 0.000376 FASTER" in run_cli("compare", *folders).stdout


def test_the_command_that_settles_it_means_the_case(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    write_time(a, 2048, 10, spread=30)
    write_time(b, 2048, 10.1, spread=30)
    (pair,) = json.loads(run_cli("compare", a, b, "--json").stdout)["pairs"]
    assert pair["verdict"] == "UNCLEAR"
    suite, pattern, rounds = re.fullmatch(
        rf"basedbench throughput --suite (\S+) --filter '(.+)' --device cpu --rounds (\d+) --fresh --out {b}",
        pair["command"],
    ).groups()
    matching = [case for case in load_suite(suite).expand("cpu") if re.search(pattern, case.label)]
    assert [(case.operator, case.contender, case.length) for case in matching] == [("taylor_attention", "ours", 2048)]
    assert int(rounds) == pair["needed"] > 8


def test_the_command_for_a_checkpoint_chooses_before_it_is_given(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    model = {"operator": "", "mode": "generation", "model": "based-360m", "dtype": "fp32", "batch": 1}
    config = {"preset": "based-360m", "checkpoint": "0123456789ab"}
    for folder, factor in zip(folders, (1, 1.01), strict=True):
        columns = {"config": config, "heads": None, "key_dim": None, "value_dim": None, "cache": "hot"} | model
        write_time(folder, 512, 10 * factor, spread=30, suite="quick-models", **columns)
    (pair,) = json.loads(run_cli("compare", *folders, "--json").stdout)["pairs"]
    assert "checkpoint=0123456789ab" in pair["label"]
    assert pair["command"].endswith(" --checkpoint PATH")
    assert "0123456789ab" not in pair["command"]


def test_the_commands_name_the_users_own_files(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder, factor in zip(folders, (1, 1.01), strict=True):
        write_time(folder, 512, 10 * factor, "own", spread=30, contender_version="my own.py 0123abcd, triton 3.5")
        write_time(folder, 256, 10 * factor, spread=30, contender_version="0.1.0")
        write_decode(folder, "a", 10 * factor, spread=30, contender_version="mine.py 0123abcd")
        write_recall(folder, 0.5 * factor, 0, mixer="mine", mixer_source="base.py 0123abcd, mine.py 4567cdef")
    pairs = json.loads(run_cli("compare", *folders, "--json").stdout)["pairs"]
    named = [re.findall(r" --plugin ('[^']+'|\S+)", pair["command"]) for pair in pairs]
    assert sorted(named) == [[], ["'my own.py'"], ["base.py", "mine.py"], ["mine.py"]]


def test_the_command_runs_the_files_of_the_side_that_it_writes_to(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    """B has another version of the mixer; of its two states one was compared."""
    files = "mine.py 0123abcd", "other.py 4567cdef"
    for folder, file, accuracy in zip(folders, files, (0.5, 0.505), strict=True):
        for number, states in enumerate((8, 16)):
            config = {"feature_dim": states}
            write_recall(folder, accuracy, number, mixer="mine", mixer_source=file, config=config)
    for a, b, file in ((*folders, "other.py"), (*folders[::-1], "mine.py")):
        pairs = json.loads(run_cli("compare", a, b, "--json").stdout)["pairs"]
        assert len(pairs) == 2
        for pair, states, rest in zip(pairs, (8, 16), (16, 8), strict=True):
            assert f"--out {b} --seed 0-" in pair["command"]
            assert pair["command"].endswith(f" --plugin {file}")
            pattern = re.search(r"--filter '([^']+)'", pair["command"])
            assert pattern
            assert re.search(pattern[1], f"mine d_model=32 feature_dim={states} lr=0.01 seed=0")
            assert not re.search(pattern[1], f"mine d_model=32 feature_dim={rest} lr=0.01 seed=0")


def test_versions_of_a_file_within_a_side_are_told(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    """Another version in B is what is compared; two in A are mixed up."""
    for folder, versions in zip(folders, ("01", "2"), strict=True):
        for number, one in enumerate(versions):
            write_recall(folder, 0.5, number, mixer="mine", mixer_source=f"mine.py 0000000{one}")
    said = re.sub(r"\s+", " ", run_cli("compare", *folders).stderr)
    assert said.count("Rows of 2 versions of mine.py (00000000, 00000001)") == 1
    assert "00000002" not in said


def test_the_files_of_what_is_compared_are_named_by_side(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for folder, file in ((a, "mat.py 0000000a"), (b, "mat2.py 0000000b")):
        write_time(folder, 512, 1, "own", contender_version=file)
        write_time(folder, 512, 1, contender_version="0.1.0")
    assert "Your files: A: mat.py 0000000a; B: mat2.py 0000000b\n" in run_cli("compare", a, b).stdout
    assert "Your files" not in run_cli("compare", a, b, "--filter", "/ours ").stdout
    found = json.loads(run_cli("compare", a, b, "--json").stdout)["files"]
    assert found == {"throughput": {"a": ["mat.py 0000000a"], "b": ["mat2.py 0000000b"]}}
    against = run_cli("compare", b, "--contender", "own", "--against", "ours").stdout
    assert "Your files: B: mat2.py 0000000b\n" in against


def test_versions_are_told_of_what_is_compared_only(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for folder, version in ((a, 0), (b, 2)):
        write_time(folder, 512, 1, "own", contender_version=f"narrow.py 1000000{version}")
        write_time(folder, 1024, 1, "own", contender_version=f"narrow.py 1000000{version + 1}")
        write_time(folder, 512, 1, contender_version="0.1.0")
        write_time(folder, 512, 2, "reference", contender_version="0.1.0")
    assert "versions" not in run_cli("compare", a, b, "--filter", "1x512 ").stderr
    assert "versions" not in run_cli("compare", a, "--contender", "ours", "--against", "reference").stderr
    alone = run_cli("compare", b, "--contender", "own", "--against", "ours", "--filter", "1x512 ")
    assert ("versions" in alone.stderr, "B: narrow.py 10000002\n" in alone.stdout) == (False, True)
    assert f"Warning: {a}: Rows of 2 versions of narrow.py" in run_cli("compare", a, b).stderr


def test_models_of_two_vocabularies_have_two_labels(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for words in (None, 8192, 64, 66):
            write_decode(folder, f"of-{words}", 1, vocab_size=words)
    labels = [pair["label"] for pair in json.loads(run_cli("compare", *folders, "--json").stdout)["pairs"]]
    usual = "base_conv+mine d_model=16 decode fp32 64x64"
    assert sorted(labels) == [usual, usual, f"{usual} vocab_size=64", f"{usual} vocab_size=66"]


def test_rows_of_other_versions_are_left_out_or_unclear(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write_time(folder, 256, 1)
        write_time(folder, 512, 1, round_medians_ms=None, baseline=None)
        write_time(folder, 1024, 1, operator="of_next_year")
        write_time(folder, 2048, 1, mode="bwd")
    outcome = run_cli("compare", *folders, "--json")
    assert outcome.exit_code == 0
    verdicts = {pair["label"].split()[3]: pair["verdict"] for pair in json.loads(outcome.stdout)["pairs"]}
    assert verdicts == {"1x256": "SAME", "1x512": "UNCLEAR"}
    assert outcome.stderr.count("2 of 4 throughput rows") == 2


def test_a_failure_without_a_reason_says_no_none(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    write_recall(a, float("nan"), 0, status="diverged")
    write_recall(b, 0.5, 0)
    outcome = run_cli("compare", a, b)
    assert "diverged in A" in outcome.stdout
    assert "None" not in outcome.stdout


def test_of_what_failed_in_a_nothing_is_missing(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for folder, status in ((a, "diverged"), (b, "ok")):
        write_recall(folder, 0.5, 0, status=status)
    for folder in folders:
        assert "\n1 FAILED: nothing to compare (exit code 0)" in run_cli("compare", a, folder).stdout
    assert run_cli("compare", b, a).exit_code == 3
    for folder in folders:
        write_recall(folder, 0.5, 1, d_model=64)
    assert "1 SAME, 1 FAILED: no regression (exit code 0)" in run_cli("compare", *folders).stdout
    write_recall(a, 0.5, 2, d_model=128)
    assert "1 SAME, 1 MISSING, 1 FAILED: incomplete (exit code 3)" in run_cli("compare", *folders).stdout
    write_time(a, 256, 1)
    write_time(a, 256, 1, "mine", status="oom", median_ms=None)
    assert run_cli("compare", a, "--contender", "ours", "--against", "mine").exit_code == 0
    assert run_cli("compare", a, "--contender", "mine", "--against", "ours").exit_code == 3


def test_failures_are_missing_with_their_reason(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    write_time(a, 256, 1)
    write_time(b, 256, 1, status="incorrect", reason="off by one", median_ms=None)
    outcome = run_cli("compare", a, b)
    assert outcome.exit_code == 3
    assert "incorrect in B: off by one" in unwrapped(outcome.stdout)


def test_unlike_machines_are_refused_unless_told(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    write_time(a, 256, 1)
    write_time(b, 256, 1, fingerprint=MACHINE | {"cpu": "B", "torch": "2.14"})
    outcome = run_cli("compare", a, b)
    assert outcome.exit_code == 2
    assert "unlike machines (cpu: A against B); say --across-machines" in outcome.stderr
    outcome = run_cli("compare", a, b, "--across-machines")
    assert outcome.exit_code == 0
    assert "torch: 2.13 against 2.14" in outcome.stdout


def test_two_contenders_of_one_run(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    for length in (256, 512):
        write_time(a, length, 2)
        write_time(a, length, 1, "mine", throttled=True)
    outcome = run_cli("compare", a, "--contender", "mine", "--against", "ours")
    assert outcome.exit_code == 0
    assert outcome.stdout.count("FASTER taylor_attention/mine") == 2
    assert "in runs of their own" not in outcome.stdout  # two contenders of one
    assert "the device was held back in B" in unwrapped(outcome.stdout)
    assert run_cli("compare", a, "--contender", "ours", "--against", "mine").exit_code == 1
    write_time(a, 256, 3, "other")
    assert run_cli("compare", a, "--contender", "ours", "--against", "other").exit_code == 3  # 512 is missing
    for asked, advice in (
        ("minee", "did you mean 'mine'?"),
        ("attention/ours", "did you mean 'taylor_attention/ours'?"),
    ):
        for mine, against in ((asked, "ours"), ("ours", asked)):
            outcome = run_cli("compare", a, "--contender", mine, "--against", against)
            assert outcome.exit_code == 2
            assert f"no rows of {asked!r} in {a}; {advice}" in unwrapped(outcome.stderr)


def test_a_graph_on_one_side_only_is_said(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for length, graphs in ((256, (False, True)), (512, (True, True)), (1024, (None, False))):
        for out, graph in zip(folders, graphs, strict=True):
            write_time(out, length, 2 if out is a else 1, graph=graph)
    said = run_cli("compare", a, b).stdout
    assert re.sub(r"\s+", " ", said).count("only B ran in a CUDA graph, the host launched the other") == 1


def test_recall_is_compared_over_seeds(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for seed, accuracy in enumerate((0.80, 0.81, 0.79)):
        write_recall(a, accuracy, seed)
        write_recall(b, accuracy - 0.1, seed)
        write_recall(a, accuracy, seed + 10, d_model=64)
        write_recall(b, accuracy, seed + 10, d_model=64)
    write_recall(a, 0.5, 20, learning_rate=0.1)
    write_recall(b, 0.6, 20, learning_rate=0.1)
    outcome = run_cli("compare", a, b, "--json")
    assert outcome.exit_code == 1
    pairs = {pair["label"]: pair for pair in json.loads(outcome.stdout)["pairs"]}
    assert {label: pair["verdict"] for label, pair in pairs.items()} == {
        "based d_model=32 feature_dim=8 lr=0.01": "LOWER",
        "based d_model=64 feature_dim=8 lr=0.01": "SAME",
        "based d_model=32 feature_dim=8 lr=0.1": "UNCLEAR",
    }
    command = pairs["based d_model=32 feature_dim=8 lr=0.1"]["command"]
    assert "--seed 0-4" in command
    ((epochs, precision),) = {(row["epochs"], row["precision"]) for row in rows(b, "recall")}
    assert f" --epochs {epochs} --precision {precision}" in command  # others would not be compared with these
    assert "B - A" in run_cli("compare", a, b).stdout


@pytest.fixture
def models(folders: tuple[Path, Path]) -> Path:
    """Two models at two rates and two seeds or three, and one of the first in fp32."""
    a, _ = folders
    own = {"precision": "bf16", "epochs": 3, "task": "{}", "suite": "quick"}
    rates = {"based": {0.01: (0.80, 0.81, 0.79), 0.1: (0.5, 0.9)}, "gla": {0.01: (0.1, 0.1), 0.1: (0.60, 0.61)}}
    for mixer, of_rate in rates.items():
        for rate, accuracies in of_rate.items():
            for seed, accuracy in enumerate(accuracies):
                case = f"{mixer[0]}{seed}{rate:010.4f}"
                recipe = json.dumps({"init": mixer, "batch_size": 32})
                more = own | {"mixer": mixer, "learning_rate": rate, "recipe": recipe, "state_bytes": 2048}
                write_recall(a, accuracy, seed, case_id=case, **more)
    write_recall(a, 0.7, 0, case_id="x" * 12, **own | {"precision": "fp32", "recipe": '{"batch_size": 16}'})
    return a


def test_two_models_of_one_folder_at_their_best_rates(run_cli: RunCli, models: Path) -> None:
    """Words of a label in any order, the mixer alone where it has one model; the seeds of the best mean decide."""
    chosen = "--contender", "precision=bf16 based", "--against", "gla"
    outcome = run_cli("compare", models, *chosen, "--json")
    (pair,) = json.loads(outcome.stdout)["pairs"]
    assert (pair["verdict"], pair["a"], pair["b"]) == ("HIGHER", pytest.approx(0.605), pytest.approx(0.8))
    based, gla = pair["label"].split(" against ")
    assert based.startswith("based d_model=32 feature_dim=8 precision=bf16 ")
    assert based.endswith(" lr=0.01 (3 seeds, best of 2 rates, 2 KiB of state)")
    assert gla == "gla d_model=32 feature_dim=8 lr=0.1 (2 seeds, best of 2 rates, 2 KiB of state)"
    told = unwrapped(run_cli("compare", models, *chosen).stdout)
    assert "1 HIGHER: no regression (exit code 0)" in told
    assert f"B: {based}" in told
    assert re.search(r" based against gla +0.6050 +0.8000 ", told)
    assert run_cli("compare", models, "--contender", "gla", "--against", "based precision=bf16").exit_code == 1


def test_the_command_that_would_settle_it_trains_both_models(run_cli: RunCli, tmp_path: Path) -> None:
    """By a suite that has both, whichever is asked first; where there is none each has its own command."""

    def commands(folder: str, mine: str, against: str) -> list[tuple[str, str]]:
        chosen = "--contender", mine, "--against", against, "--json"
        (pair,) = json.loads(run_cli("compare", tmp_path / folder, *chosen).stdout)["pairs"]
        words = [shlex.split(command) for command in pair["command"].split(" && ")]
        return [(one[one.index("--suite") + 1], one[one.index("--filter") + 1]) for one in words]

    shared = (("gla", "quick"), ("based", "quick"), ("gla", "parity"), ("based", "figure2"))
    for folder, written in (("together", shared), ("apart", shared[2:])):
        for mixer, suite in written:
            write_recall(
                tmp_path / folder,
                {"gla": 0.7, "based": 0.8}[mixer],
                0,
                mixer=mixer,
                case_id=f"{mixer:_<12}",
                suite=suite,
            )
    for names in (("gla", "based"), ("based", "gla")):
        ((suite, pattern),) = commands("together", *names)
        assert suite == "quick"
        assert all(f"^{name} " in pattern for name in names)
        found = [(suite, pattern.partition(" ")[0]) for suite, pattern in commands("apart", *names)]
        assert found == [({"gla": "parity", "based": "figure2"}[name], f"^{name}") for name in names]


def test_a_name_is_a_contenders_before_it_is_a_models(run_cli: RunCli, models: Path) -> None:
    for contender in ("gla", "ours"):
        write_time(models, 256, 1, contender)

    def said(mine: str, against: str, *more: str) -> str:
        outcome = run_cli("compare", models, "--contender", mine, "--against", against, *more)
        return outcome.stdout + outcome.stderr

    assert "B / A" in said("gla", "ours")
    assert "B - A" in said("gla d_model=32", "based precision=bf16")
    assert "B - A" in said("gla", "based precision=bf16", "--kind", "recall")
    assert "did you mean 'ours'?" in said("our", "gla")


def test_two_models_trained_unlike_each_other_are_told(run_cli: RunCli, models: Path) -> None:
    chosen = "--contender", "based precision=fp32", "--against", "gla"
    (pair,) = json.loads(run_cli("compare", models, *chosen, "--json").stdout)["pairs"]
    assert pair["verdict"] == "UNCLEAR"
    assert pair["reason"] == "one seed on a side; precision: fp32 against bf16; batch_size: 16 against 32"
    based, gla = (shlex.split(command) for command in pair["command"].split(" && "))
    for command, label, precision in (
        (based, "based d_model=32 feature_dim=8 lr=0.01 seed=0", "fp32"),
        (gla, "gla d_model=32 feature_dim=8 lr=0.1 seed=1", "bf16"),
    ):
        pattern = command[command.index("--filter") + 1]
        assert re.search(pattern, label)
        assert not re.search(pattern, label.replace("lr=0.", "lr=0.00"))
        assert command[command.index("--precision") + 1] == precision
    write_recall(models, 0.7, 0, mixer="mamba", case_id="y" * 12, task='{"length": 3}')
    asked = run_cli("compare", models, "--contender", "mamba", "--against", "gla")
    assert (asked.exit_code, "their tasks differ" in asked.stderr) == (2, True)


@pytest.mark.parametrize(
    ("mine", "against", "message"),
    [
        ("base", "gla", "--contender 'base' finds none of 3 models, such as 'based d_model=32"),
        (
            "gla",
            "based",
            "--against 'based' finds 2 models, where one is due: based d_model=32 .* precision=bf16 .*; ",
        ),
        ("gla", "d_model=32 gla", "are the same model: gla d_model=32"),
    ],
)
def test_a_model_that_is_none_or_several_is_a_sentence(run_cli: RunCli, models: Path, mine, against, message) -> None:
    outcome = run_cli("compare", models, "--contender", mine, "--against", against)
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert re.search(message, outcome.stderr)


def test_runs_that_differ_in_what_labels_leave_out_have_labels_of_their_own(
    run_cli: RunCli, folders: tuple[Path, Path]
) -> None:
    for folder in folders:
        for number, more in enumerate(({}, {"precision": "bf16"}, {"epochs": 3, "precision": "bf16"}, {"d_model": 64})):
            write_recall(folder, 0.5, 40 + number, **more)
    outcome = run_cli("compare", *folders, "--kind", "recall", "--json")
    rows = [pair["label"] for pair in json.loads(outcome.stdout)["pairs"]]
    told = [label.removeprefix("based d_model=32 feature_dim=8 lr=0.01 ") for label in rows[:3]]
    assert len(set(told)) == 3
    assert all(label.startswith("precision=") and " epochs=" in label for label in told)
    assert rows[3] == "based d_model=64 feature_dim=8 lr=0.01"


def test_seeds_that_diverged_are_not_passed_over(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for d_model, in_a, in_b, better in ((16, 0, 2, 0.0), (32, 1, 1, 0.0), (64, 0, 1, 0.2), (128, 0, 1, -0.2)):
        for folder, lost, more in zip(folders, (in_a, in_b), (0.0, better), strict=True):
            for seed in range(4):
                failed = {"status": "diverged"} if seed < lost else {}
                write_recall(folder, 0.6 + 0.001 * seed + more, 10 * d_model + seed, d_model=d_model, **failed)
    pairs = json.loads(run_cli("compare", *folders, "--kind", "recall", "--json").stdout)["pairs"]
    assert [pair["verdict"] for pair in pairs] == ["UNCLEAR", "SAME", "UNCLEAR", "LOWER"]
    assert all("seeds diverged in B" in pair["reason"] for pair in pairs)
    assert pairs[0]["reason"].startswith("2 of 4 seeds diverged in B")
    assert "--seed 0-7" in pairs[0]["command"]


def test_a_share_of_diverged_seeds_that_is_no_chance_is_a_verdict(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    """However many seeds are run, it would be UNCLEAR for ever."""
    for d_model, in_a, in_b, more in ((16, 0, 10, 0.0), (32, 10, 0, 0.0), (64, 0, 10, 0.2), (128, 0, 10, -0.2)):
        for folder, lost, better in zip(folders, (in_a, in_b), (0.0, more), strict=True):
            for seed in range(20):
                failed = {"status": "diverged"} if seed < lost else {}
                write_recall(folder, 0.6 + 1e-4 * seed + better, 20 * d_model + seed, d_model=d_model, **failed)
    outcome = run_cli("compare", *folders, "--json")
    pairs = json.loads(outcome.stdout)["pairs"]
    assert [pair["verdict"] for pair in pairs] == ["LOWER", "HIGHER", "UNCLEAR", "LOWER"]
    assert outcome.exit_code == 1
    said = "10 of 20 seeds diverged in B; the others alone would be SAME; so unlike shares are no chance"
    assert (pairs[0]["reason"], pairs[0]["command"]) == (said, None)


def test_both_kinds_unless_one_is_chosen(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write_time(folder, 256, 1)
        write_recall(folder, 0.8, 0)
    assert "2 SAME: no regression" in run_cli("compare", *folders).stdout
    assert "1 SAME: no regression" in run_cli("compare", *folders, "--kind", "recall").stdout


def test_a_kind_in_which_the_filter_finds_nothing_is_left_out(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder, cpu in zip(folders, "AB", strict=True):
        write_time(folder, 256, 1)
        write_recall(folder, 0.8, 0, fingerprint=MACHINE | {"cpu": cpu})
    outcome = run_cli("compare", *folders, "--filter", "x256 ")
    assert outcome.exit_code == 0, outcome.stderr
    assert "\n1 SAME: no regression" in outcome.stdout
    assert "B - A" not in outcome.stdout
    pairs = json.loads(run_cli("compare", *folders, "--filter", "^based", "--across-machines", "--json").stdout)[
        "pairs"
    ]
    assert [pair["kind"] for pair in pairs] == ["recall"]
    outcome = run_cli("compare", *folders, "--filter", "zzz")
    assert (outcome.exit_code, "matches none of 2 cases" in outcome.stderr) == (2, True)
    outcome = run_cli("compare", *folders, "--filter", "x256 ", "--kind", "recall")
    assert (outcome.exit_code, "matches none of 1 cases" in outcome.stderr) == (2, True)


def test_nothing_that_it_prints_needs_torch(folders: tuple[Path, Path]) -> None:
    import subprocess
    import sys

    for folder in folders:
        write_time(folder, 256, 1)
    code = (
        "import sys; from basedbench.cli import main\ntry:\n main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "compare", *map(str, folders)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}"], "give two results folders, or one with --contender X --against Y"),
        (["{a}", "--contender", "ours"], "--contender and --against go together"),
        (["{a}", "{b}", "--contender", "ours", "--against", "x"], "give two results folders, or one with"),
        (["{a}", "--contender", "ours", "--against", ""], "--against '': takes the name of a contender"),
        (["{a}", "--contender", "", "--against", "ours"], "--contender '': takes the name of a contender"),
        (["{a}", "{a}", "--contender", " ", "--against", ""], "--contender ' ': takes the name of a contender"),
        (["{a}", "--contender", "ours", "--against", "x", "--kind", "recall"], "no recall results in"),
        (["{a}", ""], "'': takes a results folder, or FOLDER@COMMIT"),
        (["{a}@abc", "{a}"], "no throughput rows of commit 'abc' in .*; newest: unknown"),
        (["{a}@", "{a}@"], "/before@': takes a results folder, or FOLDER@COMMIT"),
        (["{a}", "{a}", "--threshold", "two"], "--threshold 'two': takes a share"),
        (["{a}", "{a}", "--threshold", "0"], "takes a share between 0 and 1"),
        (["{a}", "{a}", "--fail-on", "slow"], "--fail-on 'slow': did you mean 'slower'?"),
        (["{a}", "{a}", "--kind", "recal"], "did you mean 'recall'?"),
        (["{a}", "{b}"], "there is no results folder '.*/after' to compare"),
        (["{b}", "{a}"], "there is no results folder '.*/after' to compare"),
        (["{a}", "{a}", "--filter", "zzz"], "matches none of 1 cases"),
        (["{a}", "{a}", "--filter", "("], "is not a regular expression"),
        (["{a}", "--contender", "our", "--against", "ours"], "no rows of 'our' in .*; did you mean 'ours'?"),
    ],
)
def test_bad_input_is_one_sentence(
    run_cli: RunCli, folders: tuple[Path, Path], arguments: list[str], message: str
) -> None:
    a, b = folders
    write_time(a, 256, 1)
    outcome = run_cli("compare", *(argument.format(a=a, b=b) for argument in arguments))
    assert outcome.exit_code == 2
    assert re.search(message.replace("?", r"\?"), outcome.stderr)
    assert outcome.stderr.count("\n") == 1


def test_two_revisions_in_one_folder(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    write_time(a, 256, 2, code_version="0.1.0+gaaaaaaaaaaaa")
    write_time(a, 256, 1, code_version="0.1.0+gbbbbbbbbbbbb.dirty")
    outcome = run_cli("compare", f"{a}@aaaaaaa", f"{a}@bbbb")
    assert outcome.exit_code == 0
    assert "1 FASTER" in outcome.stdout
    assert run_cli("compare", f"{a}@bbbb", f"{a}@aaaa", "--quiet").exit_code == 1
    whole = f"{a}@{'a' * 40}", f"{a}@{'B' * 40}"  # as `git rev-parse` and others write them
    assert "1 FASTER" in run_cli("compare", *whole).stdout
    write_time(a, 256, 4, code_version="0.1.0+gccccccc")  # as versions were
    assert "1 SLOWER" in run_cli("compare", whole[0], f"{a}@{'c' * 40}").stdout
    for revision, message in (
        ("c" * 6 + "d" * 34, "no throughput rows of commit 'cccc"),
        ("dddd", "of commit 'dddd'"),
        ("\udcff", "it is not UTF-8 text"),
    ):
        outcome = run_cli("compare", a, f"{a}@{revision}")
        assert outcome.exit_code == 2
        assert message in outcome.stderr


def test_a_kind_of_which_a_revision_has_no_rows_is_left_out(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    write_time(a, 256, 2, code_version="0.1.0+gaaaaaaaaaaaa")
    for commit in "ab":
        write_recall(a, 0.8, 0, code_version=f"0.1.0+g{12 * commit}")
    outcome = run_cli("compare", f"{a}@aaaa", f"{a}@bbbb", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert [pair["kind"] for pair in json.loads(outcome.stdout)["pairs"]] == ["recall"]
    asked = run_cli("compare", f"{a}@aaaa", f"{a}@bbbb", "--kind", "throughput")
    assert (asked.exit_code, "no throughput rows of commit 'bbbb'" in asked.stderr) == (2, True)
    neither = run_cli("compare", a, f"{a}@cccc")
    assert (neither.exit_code, "no throughput rows of commit 'cccc'" in neither.stderr) == (2, True)


def test_folders_that_share_no_kind_are_told_what_they_have(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    a, b = folders
    write_time(a, 256, 2)
    write_recall(b, 0.8, 0)
    outcome = run_cli("compare", a, b)
    assert outcome.exit_code == 2
    told = unwrapped(outcome.stderr)
    assert f"'{a}' only of throughput and '{b}' only of recall" in told
    assert "no throughput results" not in told


def test_a_kind_without_a_result_is_left_out(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write_time(folder, 256, 2, status="oom", median_ms=None)
    outcome = run_cli("compare", *folders)
    assert (outcome.exit_code, "has a result to compare" in outcome.stderr) == (2, True)
    for folder in folders:
        write_recall(folder, 0.8, 0)
    assert "1 SAME: no regression" in run_cli("compare", *folders).stdout


def unwrapped(text: str) -> str:
    return " ".join(text.split())


REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def test_the_comparison_in_the_readme_is_what_the_committed_rows_give(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REFERENCE.parents[1])
    readme = Path("README.md").read_text().split("<!-- compare:begin -->")[1].split("<!-- compare:end -->")[0]
    command, *shown = [line.strip() for line in readme.splitlines() if line.strip()]
    outcome = run_cli(*shlex.split(command)[2:])
    assert [" ".join(line.split()) for line in outcome.output.splitlines() if line.strip()] == [
        " ".join(line.split()) for line in shown
    ]


def test_two_runs_of_the_same_code_on_one_gpu_are_the_same_in_98_of_100_cases(run_cli: RunCli) -> None:
    folders = (REFERENCE / "steady" / name for name in ("first", "second"))
    verdicts = [case["verdict"] for case in json.loads(run_cli("compare", *folders, "--json").stdout)["pairs"]]
    assert len(verdicts) == 100
    assert sum(verdict in ("SAME", "UNCLEAR") for verdict in verdicts) >= 98


def test_a_case_that_several_suites_share_is_one(run_cli: RunCli, folders: tuple[Path, Path]) -> None:
    folder = folders[0]
    write_time(folder, 256, 1.0, suite="first")
    write_time(folder, 256, 2.0, suite="second")
    for suite in ("first", "second"):  # one seed, which is not two
        write_recall(folder, 0.5, 0, suite=suite)
    write_recall(folders[1], 0.9, 0)
    write_recall(folders[1], 0.9, 1)
    outcome = run_cli("compare", folder, folder, "--kind", "throughput")
    assert "\n1 SAME: no regression" in outcome.stdout
    (pair,) = json.loads(run_cli("compare", folder, folders[1], "--kind", "recall", "--json").stdout)["pairs"]
    assert (pair["verdict"], pair["reason"]) == ("UNCLEAR", "one seed on a side")


@pytest.mark.parametrize("write", [write_time, write_recall])
def test_the_machines_are_those_of_the_rows_that_are_compared(
    run_cli: RunCli, folders: tuple[Path, Path], write: Any
) -> None:
    a, b = folders
    first, second = (256, 512) if write is write_time else (0.25, 0.5)
    write(a, first, 1, fingerprint=MACHINE | {"cpu": "B"})
    write(a, second, 2)
    write(b, first, 1)
    write(b, second, 2)
    outcome = run_cli("compare", a, b)
    assert outcome.exit_code == 2
    assert "unlike machines (cpu: B against A" in outcome.stderr
    assert "what differs: cpu: B against A" in run_cli("compare", a, b, "--across-machines").stdout
    if write is write_time:
        assert "in 1 of 2 cases" in outcome.stderr
        assert run_cli("compare", a, b, "--filter", "x512 ").exit_code == 0
