import math
from typing import Any, cast

import pytest
import torch

from basedbench.config.recall import RecallSuite
from basedbench.errors import UserError
from basedbench.models import RecallModel
from basedbench.tasks import window_accuracy
from basedbench.training import data
from basedbench.training.cases import recall_cases
from basedbench.training.data import recall_data, split_sizes
from basedbench.training.optimizer import AdamW
from basedbench.training.rows import Circumstances, recall_row
from basedbench.training.run import RecallRun, build_model, cosine
from tests.training.conftest import MakeCase, tiny_suite, trained


def test_optimizer_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7)]
    theirs = [p.clone().requires_grad_() for p in ours]
    mine = AdamW(ours, weight_decay=0.1)
    mine.learning_rate.fill_(0.02)
    other = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        gradients = [torch.randn_like(p) for p in ours]
        mine.step([[gradient] for gradient in gradients])
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach())


def test_cosine_is_stepped_per_epoch_and_ends_near_zero() -> None:
    assert cosine(32, 0) == 1
    assert cosine(32, 16) == pytest.approx(0.5)
    assert cosine(32, 31) == pytest.approx((1 + math.cos(math.pi * 31 / 32)) / 2)


def test_segments_follow_each_other_and_tails_are_kept(make_case: MakeCase) -> None:
    case = make_case()
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    assert run.schedule(0) == [(0, 16), (0, 16), (0, 8), (1, 16)]
    assert run.schedule(1) == run.schedule(0)
    assert len(run.schedule(0)) == case.steps_per_epoch
    assert split_sizes(100_000, 256) == [256] * 390 + [160]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_segment_that_stands_again_goes_on_with_new_examples(make_case: MakeCase, fresh: bool) -> None:
    short, long = {"length": 16, "pairs": 2}, {"length": 32, "pairs": 4, "examples": 16}
    apart = make_case(segments=[short | {"examples": 24}, long, short | {"examples": 16}], fresh=fresh, epochs=2)
    whole = make_case(segments=[short | {"examples": 40}, long], fresh=fresh, epochs=2)
    first, between, second = recall_data(apart, "cpu").train
    together = recall_data(whole, "cpu").train
    assert torch.equal(torch.cat((first.tokens_NL, second.tokens_NL)), together[0].tokens_NL)
    assert torch.equal(between.tokens_NL, together[1].tokens_NL)
    assert RecallRun(apart, recall_data(apart, "cpu"), "cpu").schedule(0) == [(0, 16), (0, 8), (1, 16), (2, 16)]


def test_shuffled_batches_are_the_same_ones_in_another_order(make_case: MakeCase) -> None:
    case = make_case(shuffle=True, batch_size=2)
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    first, second = run.schedule(0), run.schedule(1)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("seed", [0, 7, -7, -(2**63), 2**63 - 1])
def test_any_seed_shuffles_and_small_ones_as_they_did(make_case: MakeCase, seed: int) -> None:
    case = make_case(shuffle=True, seeds=[seed])
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    run._begin_epoch(3)
    assert sorted(run.orders[0].tolist()) == list(range(40))
    if abs(seed) < 2**32:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 3)
        assert run.orders[0].tolist() == torch.randperm(40, generator=generator).tolist()


def test_an_epoch_reads_every_example_once(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    seen: list[torch.Tensor] = []
    hidden = run.model.hidden
    monkeypatch.setattr(run.model, "hidden", lambda tokens, *at: (seen.append(tokens.clone()), hidden(tokens, *at))[1])
    for part, size in run.schedule(0):
        run.train_batch(part, size)
    assert torch.equal(torch.cat(seen[:3]), run.data.train[0].tokens_NL)
    assert torch.equal(torch.cat(seen[3:]), run.data.train[1].tokens_NL)


def test_fresh_data_never_repeat(make_case: MakeCase) -> None:
    data = recall_data(make_case(fresh=True, epochs=3), "cpu")
    assert len(data.train[0].tokens_NL) == 3 * data.train[0].count
    assert len({tuple(row.tolist()) for row in data.train[0].tokens_NL}) == 120


def test_accuracy_is_the_share_of_right_answers_over_the_whole_vocabulary(make_case: MakeCase) -> None:
    run = trained(make_case())
    expected = []
    run.model.eval()
    for part in run.data.splits["test"]:
        logits = run.model(part.tokens_NL)
        at = logits.gather(1, part.positions_NK[..., None].expand(-1, -1, logits.shape[-1]))
        expected.append((at.argmax(-1) == part.targets_NK).double().mean().item())
    assert [values[-1] for values in run.progress.slices.values()] == pytest.approx(expected)
    assert run.progress.accuracies[-1] == pytest.approx(sum(expected) / 2)


def test_loss_is_the_mean_cross_entropy_of_the_steps(make_case: MakeCase) -> None:
    case = make_case(epochs=1, embed_dropout=0.0, learning_rates=[1e-12], weight_decay=0.0)
    run = trained(case)
    model = build_model(case).eval()
    losses = []
    for part in run.data.train:
        logits = model(part.tokens_NL, part.positions_NK)
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part.targets_NK.flatten(), reduction="none")
        losses += [batch.mean().item() for batch in flat.split(16 * part.targets_NK.shape[1])]
    assert run.progress.losses[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_run_says_when_all_that_is_left_are_its_epochs(make_case: MakeCase) -> None:
    case = make_case()
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    recordings = iter([None, None])
    run._record = lambda: recordings  # type: ignore[method-assign, assignment]
    steps = run.train()
    assert [next(steps) and run.recorded for _ in range(3)] == [False, False, True]


def test_the_same_seed_is_the_same_run(make_case: MakeCase) -> None:
    first, second = trained(make_case()), trained(make_case())
    assert first.progress == second.progress
    assert trained(make_case(seeds=[1])).progress.losses != first.progress.losses


def test_a_run_beside_another_is_the_run_alone(make_case: MakeCase) -> None:
    attention = [{"mixer": "attention", "grid": {"d_model": 16}}]
    alone = [trained(make_case()), trained(make_case(attention))]
    beside = [RecallRun(case, recall_data(case, "cpu"), "cpu") for case in (make_case(), make_case(attention))]
    generators = [run.train() for run in beside]
    while generators:
        generators = [g for g in generators if next(g, None) is not None]
    assert [run.progress for run in beside] == [run.progress for run in alone]


def test_weights_are_those_of_the_seed_and_leave_the_global_generator_alone(make_case: MakeCase) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(make_case())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    for a, b in zip(first.parameters(), build_model(make_case()).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(make_case: MakeCase) -> None:
    case = make_case(epochs=4)
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    with torch.no_grad():
        run.model.embedding.weight.fill_(math.nan)
    for _ in run.train():
        pass
    assert (run.progress.status, len(run.progress.losses)) == ("diverged", 1)


def test_weights_that_only_the_last_step_spoils_end_the_run_as_diverged(make_case: MakeCase) -> None:
    case = make_case(epochs=1)
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    step, last = run.train_batch, run.schedule(0)[-1]

    def train_batch(part: int, size: int) -> None:
        step(part, size)
        if (part, size) == last:
            with torch.no_grad():
                run.model.embedding.weight.fill_(math.inf)

    run.train_batch = train_batch  # type: ignore[method-assign]
    for _ in run.train():
        pass
    assert math.isfinite(run.progress.losses[0])
    assert (run.progress.status, run.progress.stop_reason) == ("diverged", "weights are not finite")


def test_answers_that_are_not_finite_are_named_in_the_row(make_case: MakeCase) -> None:
    """A forward that overflows behind the lengths of training scores low there, and nothing else would say why."""
    case = make_case(epochs=1)
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    hidden = run.model.hidden

    def overflowing(tokens_BL: torch.Tensor, *more: Any) -> torch.Tensor:
        asked_BKD = hidden(tokens_BL, *more)
        return asked_BKD if run.model.training or tokens_BL.shape[1] < 32 else asked_BKD * math.nan

    run.model.hidden = overflowing  # type: ignore[method-assign]
    for _ in run.train():
        pass
    assert run.progress.status == "ok"
    assert run.progress.not_finite == ["32x8"]
    row = recall_row(case, run.progress, Circumstances("cpu", 0.1))
    assert row["reason"] == "answers are not finite in 32x8 of the test"
    assert recall_row(case, trained(case).progress, Circumstances("cpu", 0.1))["reason"] is None


def test_what_needs_no_gradient_stays_and_what_has_none_is_named(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case([{"mixer": "attention", "grid": {"d_model": 16}}])

    def built(*arguments: object, **options: object) -> RecallModel:
        model = RecallModel(*arguments, **options)  # type: ignore[arg-type]
        model.mixers[1].register_parameter("spare", torch.nn.Parameter(torch.ones(3), requires_grad=requires_grad))
        return model

    monkeypatch.setattr("basedbench.training.run.RecallModel", built)
    requires_grad = False
    run = trained(case)
    assert cast(torch.Tensor, run.model.mixers[1].spare).tolist() == [1, 1, 1]
    assert run.model.parameters_count() == sum(p.numel() for p in run.model.parameters()) - 3
    requires_grad = True
    with pytest.raises(UserError, match=r"nothing depends on the parameter blocks\.1\.mixer\.spare"):
        trained(case)


def test_validation_is_a_split_of_its_own(make_case: MakeCase) -> None:
    case = make_case()
    suite = tiny_suite()
    judged = suite.model_copy(update={"test": suite.test.model_copy(update={"select": "validation"})})
    chosen = recall_cases(cast(RecallSuite, judged))[0]
    run = trained(chosen)
    test, validation = run.data.splits["test"][0], run.data.splits["validation"][0]
    assert not torch.equal(test.tokens_NL, validation.tokens_NL)
    assert len(run.progress.validation) == case.train.epochs


@pytest.mark.parametrize(("seen", "stops"), [("validation", True), ("test", False)])
def test_only_the_validation_split_stops_a_run_that_is_chosen_by_it(seen: str, stops: bool) -> None:
    suite = tiny_suite()
    judged = suite.model_copy(update={"test": suite.test.model_copy(update={"select": "validation"})})
    case = recall_cases(cast(RecallSuite, judged))[0]
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    all_right = [float(part.targets_NK.numel() * (split == seen)) for split, part in run.judged]
    run._end_epoch([1.0, 1.0, *all_right, *[0.0] * len(all_right)], steps=1)
    assert run.progress.stop_reason == ("validation accuracy above 0.99" if stops else "")


def test_attention_learns_recall_and_stops_early() -> None:
    suite = tiny_suite(
        [{"mixer": "attention", "grid": {"d_model": 48}}],
        segments=[{"length": 16, "pairs": 4, "examples": 2560}, {"length": 32, "pairs": 8, "examples": 2560}],
        batch_size=64,
        epochs=8,
        learning_rates=[0.02],
        shuffle=True,
        fresh=True,
    )
    run = trained(recall_cases(suite)[0])
    assert run.progress.accuracies[-1] > 0.95
    assert run.progress.losses[-1] < 0.5 * run.progress.losses[0]


def test_a_short_window_answers_what_it_can_see() -> None:
    """It cannot beat the share of answers in its reach (BaseConv adds two positions, guessing a little)."""
    models = [{"mixer": "sliding_window", "grid": {"d_model": 32, "window": 8}}]
    suite = tiny_suite(
        models,
        segments=[{"length": 32, "pairs": 4, "examples": 4096}],
        batch_size=64,
        epochs=6,
        fresh=True,
        learning_rates=[0.02],
    )
    case = recall_cases(suite)[0]
    run = trained(case)
    for segment in case.test.segments:
        reach = window_accuracy(case.segment_task(segment.length, segment.pairs), 8 + 2, 0, "test", 4000)
        assert run.progress.slices[segment.name][-1] < reach + 0.1


@pytest.mark.parametrize(("options", "epochs"), [({}, 1), ({"fresh": True}, 2), ({"shuffle": True}, 0)])
def test_batches_that_are_always_the_same_are_sorted_on_a_gpu(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], epochs: int
) -> None:
    case = make_case(epochs=2, **options)
    data._generate.cache_clear()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    train = recall_data(case, "cpu").train
    data._generate.cache_clear()
    for part in train:
        sizes = split_sizes(part.count, case.train.batch_size) * epochs
        if not epochs:
            assert part.places is None
            continue
        assert part.places is not None
        assert torch.bincount(part.places.batch_N).tolist() == sizes
        words, rows = case.task.vocab_size, part.tokens_NL[: sizes[0]].flatten()
        ends = part.places.starts[: words + 1].tolist()
        for word in range(words):
            found = part.places.order[ends[word] : ends[word + 1]].tolist()
            assert found == (rows == word).nonzero().flatten().tolist()
