"""`basedbench plot` on small results folders: what it writes, prints and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from basedbench.store import Store
from basedbench.store.schema import blank_row

SLICES = {"64x4": 1.0, "64x8": 0.9, "128x8": 0.8}


def recall_row(number, family, config, accuracy, state_bytes, **more):
    values = {"case_id": f"c{number}", "suite": "mine", "mixer": family, "family": family, "status": "ok"}
    values |= {"config": config, "d_model": 64, "layers": 2, "learning_rate": 0.01, "seed": 0, "epochs": 4}
    values |= {"accuracy": accuracy, "accuracy_by_slice": SLICES, "state_bytes": state_bytes, "parameters": 10_000}
    values |= {"state_bytes_zoology": state_bytes, "vocab_size": 128, "select_split": "test", "created_at": None}
    return blank_row("recall") | values | more


RUNS = [
    recall_row(0, "based", {"feature_dim": 8}, 0.5, 2048),
    recall_row(1, "based", {"feature_dim": 16}, 0.8, 8192),
    recall_row(2, "based", {"feature_dim": 16}, 0.9, 8192, learning_rate=0.003),
    recall_row(3, "attention", {"heads": 1}, 1.0, 65536),
    recall_row(4, "mamba", {"d_state": 16}, 0.7, 8192, seed=0),
    recall_row(5, "mamba", {"d_state": 16}, 0.6, 8192, seed=1),
    recall_row(6, "mamba", {"d_state": 16}, None, 8192, seed=2, status="diverged"),
]


def timing_row(number, contender, length, median_ms, **more):
    values = {"case_id": f"t{number}", "suite": "kernels", "operator": "ssd", "contender": contender, "mode": "fwd"}
    values |= {"dtype": "fp32", "batch": 1, "length": length, "heads": 2, "key_dim": 8, "value_dim": 16, "config": {}}
    values |= {"status": "ok", "cache": "hot", "device_name": "a CPU", "baseline": "reference", "median_ms": median_ms}
    if median_ms:
        values |= {"ci_low_ms": 0.9 * median_ms, "ci_high_ms": 1.1 * median_ms}
        values |= {"tokens_per_s": length / median_ms * 1e3}
    return blank_row("throughput") | values | more


TIMINGS = [
    timing_row(0, "ours", 1024, 1.024),
    timing_row(1, "ours", 2048, 2.048),
    timing_row(2, "reference", 1024, 4.096),
    timing_row(3, "reference", 2048, None, status="oom", reason="needs 9 GiB"),
    timing_row(4, "ours", 1024, 0.5, mode="decode", tokens_per_s=2000.0),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plot") / "results"
    store = Store(folder)
    for row in RUNS:
        store.write("recall", row)
    for row in TIMINGS:
        store.write("throughput", row)
    return folder


@pytest.fixture
def plot(run_cli, results, tmp_path):
    """Runs `plot NAME` on the results, writing a small file in a fresh folder."""

    def run(name, *arguments, folder=results, out="figure.png"):
        outcome = run_cli("plot", name, "--results", folder, "--out", tmp_path / out, *arguments)
        assert outcome.exit_code == 0, outcome.output
        return outcome.stdout

    return run


@pytest.fixture
def mistake(run_cli):
    """Runs `plot` and returns the one sentence that it refuses with."""

    def run(*arguments):
        outcome = run_cli("plot", *arguments)
        assert outcome.exit_code == 2
        assert outcome.stdout == ""
        assert outcome.stderr.startswith("Error: ")
        return outcome.stderr

    return run


def as_json(printed):
    return json.loads(printed)


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_is_written_in_the_format_of_its_name(plot, tmp_path, kind, begins):
    printed = plot("pareto", out=f"new/figure.{kind}")
    assert (tmp_path / "new" / f"figure.{kind}").read_bytes().startswith(begins)
    assert f"Figure: {tmp_path / 'new' / f'figure.{kind}'}" in printed


def test_without_out_the_figure_lands_in_the_results_folder(run_cli, tmp_path):
    Store(tmp_path).write("recall", RUNS[0])
    assert run_cli("plot", "pareto", "--results", tmp_path).exit_code == 0
    assert (tmp_path / "pareto.png").stat().st_size > 1000


def test_the_table_lists_every_point_and_marks_the_frontier(plot):
    printed = plot("pareto")
    rows = {tuple(line.split()[:3]): line for line in printed.splitlines()}
    assert ("*", "Based", "d64") in rows
    based = next(line for line in printed.splitlines() if "f16" in line)
    assert based.split()[:8] == ["*", "Based", "d64", "f16", "8", "KiB", "0.900", "0.003"]
    mamba = next(line for line in printed.splitlines() if "Mamba" in line)
    assert mamba.split()[0] == "Mamba"
    assert "0.650 ±0.635" in mamba
    assert "2 of 3" in mamba
    assert "Best of 1 to 2 learning rates per model, chosen on the test split" in printed
    assert "Failed: 1 diverged." in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 100  # the last is a path
    assert "\x1b[" not in printed


def test_json_has_the_points_the_frontier_and_the_selection(plot, tmp_path):
    printed = as_json(plot("pareto", "--json"))
    assert printed["figure"] == str(tmp_path / "figure.png")
    assert (printed["x"], printed["y"]) == ("state_bytes", "accuracy")
    assert printed["failed"] == {"diverged": 1}
    front = [(point["family"], point["config"]) for point in printed["points"] if point["frontier"]]
    assert front == [("based", {"feature_dim": 8}), ("based", {"feature_dim": 16}), ("attention", {"heads": 1})]
    best = next(point for point in printed["points"] if point["config"] == {"feature_dim": 16})
    assert (best["accuracy"], best["learning_rate"], best["learning_rates"]) == (0.9, 0.003, 2)
    assert best["accuracy_low"] is None


def test_every_learning_rate_can_be_a_point(plot):
    points = as_json(plot("pareto", "--select", "all", "--json"))["points"]
    assert len(points) == 5
    assert sum(point["config"] == {"feature_dim": 16} for point in points) == 2


@pytest.mark.parametrize(("y", "value"), [("accuracy@4", 1.0), ("accuracy@8", 0.8), ("accuracy@64x8", 0.9)])
def test_one_slice_as_y(plot, y, value):
    assert {point[y] for point in as_json(plot("pareto", "--y", y, "--json"))["points"]} == {value}


def test_the_table_can_stand_under_the_figure(plot, tmp_path):
    def height(name):
        return int.from_bytes((tmp_path / name).read_bytes()[20:24], "big")

    plot("pareto", out="plain.png")
    plot("pareto", "--table", out="table.png")
    assert height("table.png") > height("plain.png")


def test_points_without_a_cost_are_mentioned(plot, tmp_path):
    store = Store(tmp_path / "other")
    for row in (RUNS[0], recall_row(9, "none", {}, 0.1, 0)):
        store.write("recall", row)
    assert "Not shown: 1 without state_bytes above 0" in plot("pareto", folder=tmp_path / "other")


def test_rows_of_what_an_edited_suite_was_before_are_left_out_and_counted(run_cli, tmp_path):
    folder = tmp_path / "edited"
    store = Store(folder)
    before, after = ({"vocab_size": 128, "train": [{"length": length, "pairs": 4}]} for length in (64, 128))
    store.write("recall", RUNS[0] | {"task": before, "accuracy": 0.9})
    store.write("recall", RUNS[1] | {"task": before})
    store.write("recall", RUNS[0] | {"case_id": "again", "task": after})
    drawn = run_cli("plot", "pareto", "--results", folder, "--json")
    assert [point["accuracy"] for point in as_json(drawn.stdout)["points"]] == [0.5]
    assert "2 rows are left out: of another task that the suite mine had before." in drawn.stderr


def test_tasks_of_one_shape_with_other_settings_are_different_tests(mistake, plot, tmp_path):
    store = Store(tmp_path / "settings")
    for number, (suite, more) in enumerate({"a": {}, "b": {"train": [1]}, "c": {"filler": "none"}}.items()):
        store.write("recall", RUNS[number] | {"suite": suite, "task": {"filler": "random", **more}})
    assert len(as_json(plot("pareto", "--suite", "a", "--suite", "b", "--json", folder=store.root))["points"]) == 2
    assert "different tasks" in mistake("pareto", "--results", store.root)


def test_suites_are_told_apart(mistake, plot, tmp_path):
    folder = tmp_path / "two"
    store = Store(folder)
    store.write("recall", RUNS[0])
    store.write("recall", RUNS[1] | {"suite": "theirs"})
    store.write("recall", RUNS[3] | {"suite": "other", "accuracy_by_slice": {"32x2": 0.9}, "vocab_size": 64})
    with_both = as_json(plot("pareto", "--suite", "mine", "--suite", "theirs", "--json", folder=folder))
    assert {point["suite"] for point in with_both["points"]} == {"mine", "theirs"}
    assert len(as_json(plot("pareto", "--suite", "other", "--json", folder=folder))["points"]) == 1
    assert "mine, other, theirs were tested on different tasks" in mistake("pareto", "--results", folder)


def test_precisions_can_be_told_apart(mistake, plot, tmp_path):
    folder = tmp_path / "precisions"
    for number, precision in enumerate(("bf16", "fp32")):
        Store(folder).write("recall", RUNS[number] | {"precision": precision})
    both, one = (as_json(plot("pareto", *chosen, "--json", folder=folder)) for chosen in ([], ["--precision", "fp32"]))
    assert [len(both["points"]), [point["precision"] for point in one["points"]]] == [2, ["fp32"]]
    assert "fp16" in mistake("tradeoff", "--precision", "fp16", "--results", folder)


def test_published_points_come_with_a_comparison(plot, tmp_path):
    lengths = ("64x4", "64x8", "64x16", "128x32", "256x64", "512x128", "1024x256")
    row = recall_row(0, "based", {"feature_dim": 16}, 0.9, 40_548, accuracy_by_slice=dict.fromkeys(lengths, 0.9))
    Store(tmp_path / "figure2").write("recall", row)
    printed = plot("pareto", "--published", "--x", "state_bytes_zoology", folder=tmp_path / "figure2")
    assert "0.912" in printed
    assert "-0.012" in printed


def test_slices(plot, tmp_path):
    printed = plot("slices")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "64x4" in printed
    assert "64x8" not in printed  # as many pairs as 128x8, and shorter
    assert next(line for line in printed.splitlines() if "f16" in line).split() == [
        "Based",
        "d64",
        "f16",
        "1.000",
        "0.800",
    ]
    points = as_json(plot("slices", "--json"))["points"]
    assert {point["accuracy@128x8"] for point in points} == {0.8}


def learnt(row, accuracies, **more):
    return row | {"accuracy_by_epoch": accuracies, "loss_by_epoch": [9 - 8 * one for one in accuracies]} | more


@pytest.fixture
def trained(tmp_path):
    """RUNS, of which most say their curves; attention stopped early."""
    store = Store(tmp_path / "trained")
    curves = {1: [0.0, 0.8], 2: [0.1, 0.2, 0.8, 0.9], 3: [1.0], 4: [0.0, 0.1, 0.2, 0.7], 5: [0.0, 0.3, 0.5, 0.6]}
    for number, row in enumerate(RUNS):
        stop = {"stop_reason": "accuracy above 0.99" if number == 3 else "epochs"}
        by_slice = {"accuracy_by_slice_by_epoch": {"64x4": [0.25, 0.5]}} if number == 2 else {}
        store.write("recall", learnt(row, curves[number], **stop, **by_slice) if number in curves else row)
    return store.root


def test_curves_are_of_each_models_best_rate(plot, tmp_path, trained):
    printed = plot("curves", folder=trained)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    lines = [line.split() for line in printed.splitlines()]
    assert ["Based", "d64", "f16", "0.003", "1", "4", "0.100", "0.900", "3"] in lines
    assert ["Attention", "d64", "0.01", "1", "1", "*", "1.000", "1.000", "1"] in lines
    assert ["Mamba", "d64", "N16", "0.01", "2", "of", "3", "4", "0.000", "0.650", "3"] in lines
    words = " ".join(printed.split())
    assert "chosen on the test split; mean of 1 to 2 seeds, bands: smallest to largest where there are several" in words
    assert "Marker at a line's end: stopped early (accuracy above 0.99)." in words
    assert "Not shown: 1 without accuracy by epoch." in words
    assert "Failed: 1 diverged." in words


def test_curves_as_json_have_every_number(plot, trained):
    printed = as_json(plot("curves", "--json", "--filter", "^mamba ", folder=trained))
    (point,) = printed["points"]
    assert point["mean"] == pytest.approx([0.0, 0.2, 0.35, 0.65])
    assert (point["low"], point["high"]) == ([0.0, 0.1, 0.2, 0.6], [0.0, 0.3, 0.5, 0.7])
    assert (point["halfway"], point["stopped"], point["seeds"], point["diverged"]) == (3, False, 2, 1)
    assert (printed["y"], printed["failed"]) == ("accuracy", {"diverged": 1})


def test_curves_of_loss_and_of_a_slice(plot, trained):
    losses = {
        point["family"]: point for point in as_json(plot("curves", "--y", "loss", "--json", folder=trained))["points"]
    }
    assert losses["based"]["mean"] == pytest.approx([8.2, 7.4, 2.6, 1.8])
    assert losses["based"]["halfway"] == 3  # ln 128 is 4.85
    assert losses["attention"]["low"] is None
    (sliced,) = as_json(plot("curves", "--y", "accuracy@4", "--json", folder=trained))["points"]
    assert (sliced["mean"], sliced["learning_rate"]) == ([0.25, 0.5], 0.003)


def test_every_learning_rate_can_be_a_curve(plot, trained):
    points = as_json(plot("curves", "--select", "all", "--filter", "feature_dim=16", "--json", folder=trained))[
        "points"
    ]
    assert {point["learning_rate"]: len(point["mean"]) for point in points} == {0.01: 2, 0.003: 4}


def test_curves_of_different_tasks_are_not_mixed(mistake, plot, tmp_path):
    store = Store(tmp_path / "tasks")
    store.write("recall", learnt(RUNS[0], [0.1, 0.5], steps=20))
    store.write("recall", learnt(RUNS[1], [0.1, 0.8], steps=30, suite="theirs"))
    store.write("recall", learnt(RUNS[2], [0.1, 0.9], steps=30, suite="other", accuracy_by_slice={"32x2": 0.9}))
    assert "mine, other, theirs were tested on different tasks" in mistake("curves", "--results", store.root)
    chosen = plot("curves", "--suite", "mine", "--suite", "theirs", "--json", folder=store.root)
    assert "Epochs are of unlike length: steps 10 (mine), 15 (theirs)." in as_json(chosen)["note"]
    assert "An epoch has 10 steps." in plot("curves", "--suite", "mine", folder=store.root)


def test_more_curves_than_a_panel_holds_are_refused_with_a_filter_that_helps(mistake, plot, tmp_path):
    store = Store(tmp_path / "many")
    for number in range(21):
        row = recall_row(number, "based", {"feature_dim": number + 1}, 0.5, 2048 + number, d_model=32 if number else 64)
        store.write("recall", learnt(row, [0.1, 0.5]))
    said = mistake("curves", "--results", store.root)
    assert "Based would have 21 lines, more than the 20 that a panel holds" in said
    assert "--filter '^based d_model=64 '" in said
    assert len(as_json(plot("curves", "--filter", "^based d_model=64 ", "--json", folder=store.root))["points"]) == 1


def test_throughput(plot, tmp_path):
    lines = [line.split() for line in plot("throughput").splitlines()]
    assert ["ssd", "fwd", "ours", "2k", "1", "µs"] in lines
    assert ["ssd", "fwd", "reference", "1k", "4", "µs", "1", "oom"] in lines
    assert ["ssd", "decode", "ours", "1k", "500", "µs"] in lines
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_throughput_of_one_mode_as_json(plot):
    printed = as_json(plot("throughput", "--mode", "fwd", "--y", "tokens_per_s", "--json"))
    assert [point["mode"] for point in printed["points"]] == ["fwd"] * 4
    assert printed["points"][0]["value"] == pytest.approx(1e6)
    assert printed["points"][3]["value"] is None
    assert printed["failed"] == {"oom": 1}


def test_throughput_of_chosen_cases(plot):
    points = as_json(plot("throughput", "--filter", r"^ssd/\S+ fwd fp32 1x1024$", "--json"))["points"]
    assert [(point["contender"], point["length"]) for point in points] == [("ours", 1024), ("reference", 1024)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pareto", "--x", "state_byte"], "did you mean 'state_bytes'"),
        (["pareto", "--x", "prefill_tokens_per_s"], "throughput rows of the same mixers"),
        (["pareto", "--y", "acuracy"], "did you mean 'accuracy'"),
        (["pareto", "--y", "parameters"], "'parameters' is no accuracy"),
        (["pareto", "--x", "accuracy"], "x and y are both 'accuracy'"),
        (["pareto", "--y", "accuracy@5"], "there are accuracy@64x4, accuracy@64x8, accuracy@128x8"),
        (["pareto", "--y", "validation_accuracy"], "no point has both state_bytes"),
        (["pareto", "--select", "best"], "did you mean 'best-lr'"),
        (["pareto", "--suite", "figure2"], "no rows of suite 'figure2' in this results folder, only of mine"),
        (["pareto", "--out", "figure.jpg"], "'.jpg': a figure is saved as .png, .svg, .pdf"),
        (["pareto", "--out", "/proc/no/figure.png"], "cannot write the figure"),
        (["pareto", "--width", "triple"], "no width 'triple'"),
        (["pareto", "--published"], "use --x state_bytes_zoology"),
        (["pareto", "--published", "--x", "state_bytes_zoology"], "these rows were tested on 64x4, 64x8, 128x8"),
        (["throughput", "--filter", "("], "'(' is not a regular expression"),
        (["throughput", "--filter", "ssm"], "finds none of 5 cases, such as 'ssd/"),
        (["throughput", "--operator", "ss"], "no rows of operator 'ss' here: did you mean 'ssd'"),
        (["throughput", "--mode", "bwd"], "no rows of mode 'bwd'"),
        (["throughput", "--y", "time"], "no measure 'time'"),
        (["slices", "--suite", "x"], "only of mine"),
        (["curves", "--suite", "x"], "only of mine"),
        (["curves", "--y", "los"], "no curve 'los': did you mean 'loss'"),
        (["curves", "--y", "accuracy@5"], "there are accuracy@64x4, accuracy@64x8, accuracy@128x8"),
        (["curves"], "these rows have no accuracy by epoch, so there is nothing to draw; run their suite again"),
        (["curves", "--filter", "("], "'(' is not a regular expression"),
        (
            ["curves", "--filter", "^h3 "],
            "finds none of 7 runs, such as 'based d_model=64 feature_dim=8 lr=0.01 seed=0'",
        ),
        (["curves", "--filter", "^mamba .*seed=2"], "no run of mine finished (1 diverged)"),
        (["curves", "--select", "best"], "did you mean 'best-lr'"),
        (["curves", "--out", "figure.jpg"], "'.jpg': a figure is saved as .png, .svg, .pdf"),
    ],
)
def test_mistakes_are_one_clear_sentence(mistake, results, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in mistake(*arguments, "--results", results)


def test_a_tradeoff_without_times_says_which_command_takes_them(mistake, tmp_path):
    Store(tmp_path / "untimed").write("recall", RUNS[0])
    for arguments in (["tradeoff"], ["pareto", "--x", "decode_tokens_per_s"]):
        said = mistake(*arguments, "--results", tmp_path / "untimed")
        assert f"`basedbench throughput --models mine.yaml --out {tmp_path / 'untimed'}` takes them" in said
    Store(tmp_path / "untimed").write("recall", RUNS[0] | {"suite": "quick", "case_id": "f" * 12})
    said = mistake("tradeoff", "--results", tmp_path / "untimed")
    assert said.count("`basedbench throughput --models ") == 2
    assert "--models quick --out" in said


def test_the_interval_of_a_decode_rate_is_that_of_its_time(plot, tmp_path):
    store = Store(tmp_path / "timed")
    for seed in range(3):
        store.write("recall", recall_row(seed, "based", {}, 0.5, 2048, seed=seed, layer_mixers="based"))
    timed = {"operator": None, "model": "based d_model=64", "mode": "decode", "config": {}}
    store.write("throughput", timing_row(0, "ours", 64, 1.0, **timed))
    for name in (["pareto", "--x", "decode_tokens_per_s"], ["tradeoff"]):
        (point,) = as_json(plot(*name, "--json", folder=store.root))["points"]
        ends = point["decode_tokens_per_s_low"], point["decode_tokens_per_s_high"]
        assert ends == pytest.approx((64_000 / 1.1, 64_000 / 0.9))


def test_rows_of_other_versions_leave_every_figure_drawable(run_cli, tmp_path):
    store = Store(tmp_path / "results")
    for row in RUNS:
        store.write("recall", row)
    for row in TIMINGS:
        store.write("throughput", row)
    store.write("recall", RUNS[0] | {"case_id": "familyless", "family": None, "d_model": 32})
    store.write("recall", RUNS[0] | {"case_id": "strange", "accuracy_by_slice": {"all": 1.0}})
    store.write("throughput", TIMINGS[0] | {"case_id": "new", "operator": "of_next_year", "mode": "bwd"})
    store.write("throughput", TIMINGS[0] | {"case_id": "strange", "contender": None, "baseline": None})
    for name, kind in (("pareto", "recall"), ("slices", "recall"), ("throughput", "throughput")):
        outcome = run_cli("plot", name, "--results", store.root, "--out", tmp_path / "figure.svg")
        assert outcome.exit_code == 0
        assert f"{kind} rows in" not in outcome.stderr or outcome.stderr.count("left out") == 1


def test_a_machine_without_torch_can_plot(results, tmp_path):
    hide = "import sys; sys.modules['torch'] = None; from basedbench.cli import main; main()"
    arguments = ["plot", "pareto", "--results", str(results), "--out", str(tmp_path / "figure.svg")]
    subprocess.run([sys.executable, "-c", hide, *arguments], check=True, capture_output=True)
    assert (tmp_path / "figure.svg").exists()


def test_nothing_finished_and_nothing_there(mistake, tmp_path):
    Store(tmp_path / "failed").write("recall", RUNS[6])
    assert "no run of mine finished (1 diverged)" in mistake("pareto", "--results", tmp_path / "failed")
    assert "no recall results" in mistake("pareto", "--results", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
