"""The table of state sizes in the docs: what decoding carries, measured, beside the two published counts."""

from collections.abc import Iterator

from basedbench.analysis.markdown import table
from basedbench.analysis.naming import family_title
from basedbench.config import load_suite
from basedbench.models.state import state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.run import build_model

# Where the models are from, and which of them: figure3 has its feature maps at eight widths, one shows them all.
SUITES = ("figure2-full", "modern", "figure3")
ONE_WIDTH = {"figure3": 64}
COLUMNS = ("model", "measured", "zoology's count", "printed count", "measured / zoology's")


def state_table() -> str:
    """One line per model of the suites, by family: bytes per sequence in fp32 at the longest test length."""
    lines = []
    for case in _models():
        model, length = build_model(case), case.longest
        measured, zoology = state_bytes(model, length), state_bytes_zoology(model, length)
        label = " ".join(f"{name}={value}" for name, value in case.named)
        name = f"{family_title(model.mixers[-1].family_of(case.config))}, d {case.d_model}" + f" {label}" * bool(label)
        counts = [f"{size:,}" for size in (measured, zoology, state_bytes_paper(model, length))]
        lines.append((case.mixer, [name, *counts, f"{measured / zoology:.2f}"]))
    order = list(dict.fromkeys(mixer for mixer, _ in lines))
    return table(COLUMNS, [cells for mixer, cells in sorted(lines, key=lambda line: order.index(line[0]))])


def _models() -> Iterator[RecallCase]:
    """The first run of each model, each model once."""
    seen = set()
    for suite in SUITES:
        for case in recall_cases(load_suite(suite, "recall")):
            model = str([(layer.mixer, sorted(layer.options.items())) for layer in case.layers]) + str(case.d_model)
            if case.d_model == ONE_WIDTH.get(suite, case.d_model) and model not in seen:
                seen.add(model)
                yield case
