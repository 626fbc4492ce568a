"""The published recall-versus-state points: BASED (arXiv 2402.18668, Figure 2) and the mixers added to it since.

Accuracies are digitised from the figure released with the authors' code (+-0.003): mean over seven test slices, one
seed, the best of four learning rates chosen on test. Bytes are in the two published counts: `state_bytes_zoology`
(layer 0's short convolution included) and `state_bytes_paper` (left out; NaN for mixers that are not in the printed
figure). Mamba and Mamba-2 were trained with an initialisation that was mended later (`init: published`). The figure's
code takes the best run of a mixer at each number of bytes, so that models of one size share a point.
"""

import pandas as pd

from basedbench.analysis.columns import slices
from basedbench.analysis.selection import MODEL
from basedbench.errors import UserError

LABEL = "Published"
NOTE = (
    "Hollow: published points, digitised (arXiv 2402.18668 and later mixers in its code; one seed, best of 4 on test)."
)
SLICES = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
AXES = ("state_bytes_zoology", "state_bytes_paper")

_BASED = [  # d_model, feature_dim, bytes in the code's count and in the paper's, accuracy
    (48, 8, 9396, 8820, 0.667),
    (64, 8, 12468, 11700, 0.719),
    (128, 8, 24756, 23220, 0.840),
    (48, 16, 30564, 29988, 0.836),
    (64, 16, 40548, 39780, 0.912),
    (128, 16, 80484, 78948, 0.985),
    (48, 24, 64276, 63700, 0.856),
    (64, 24, 85268, 84500, 0.970),
    (128, 24, 169236, 167700, 0.991),
]
_WINDOW = [(8, 0.072), (16, 0.144), (32, 0.311), (64, 0.513), (128, 0.654), (256, 0.797), (512, 0.936), (1024, 1.0)]
_BY_BYTES = {  # the same bytes in both counts
    "mamba2": [
        *((8192, 0.520), (16384, 0.690), (24576, 0.727), (32768, 0.784)),
        *((49152, 0.796), (65536, 0.832), (98304, 0.844)),
    ],
    "mamba": [(16384, 0.695), (24576, 0.697), (49152, 0.757), (98304, 0.85)],
    "hyena": [(524288, 0.185), (1048576, 0.304), (2097152, 0.409)],
    "h3": [(8192, 0.189), (32768, 0.248), (131072, 0.247)],
}
_LATER = {  # not in the printed figure; d_model 64, 128, 256
    "delta_net": [(8960, 0.793), (34304, 0.963), (134144, 0.995)],
    "gated_delta_net": [(17152, 0.890), (67072, 0.988), (265216, 0.994)],
    "gla": [(4864, 0.532), (17920, 0.771), (68608, 0.950)],
    "rwkv7": [(17152, 0.816), (34304, 0.915), (68608, 0.980)],
}
ONLY_PUBLISHED_INIT = ("mamba", "mamba2", "rwkv7")
_ARCHITECTURE = ("family", "mixer", "layer_mixers", "layer_options", "config", "d_model", "layers")
_TRAINING = [name for name in MODEL if name not in _ARCHITECTURE]


def published() -> pd.DataFrame:
    """The points: family, label (None where bytes alone are known), the two byte counts and accuracy."""
    rows: list[tuple[str, str | None, float, float, float]] = [
        ("based", f"d{d} f{f}", zoology, paper, accuracy) for d, f, zoology, paper, accuracy in _BASED
    ]
    rows += [("attention", "d64", 525056, 524288, 1.0), ("attention", "d128", 1050112, 1048576, 1.0)]
    rows += [("sliding_window", f"w{w}", 1024 * w + 1536, 1024 * w, accuracy) for w, accuracy in _WINDOW]
    rows += [(family, None, size, size, accuracy) for family, known in _BY_BYTES.items() for size, accuracy in known]
    for family, known in _LATER.items():
        widths = zip((64, 128, 256), known, strict=True)
        rows += [(family, f"d{d}", size, float("nan"), accuracy) for d, (size, accuracy) in widths]
    return pd.DataFrame(rows, columns=["family", "label", *AXES, "accuracy"])


def check_comparable(frame: pd.DataFrame, x: str, y: str) -> None:
    """Raise UserError unless the rows were tested as the published ones and x, y are what was published."""
    if x not in AXES or y != "accuracy":
        raise UserError(
            f"the published points are known as accuracy against {' or '.join(AXES)}, not as {y} against {x}; "
            f"use --x {AXES[0]} --y accuracy, or leave --published away."
        )
    if sorted(slices(frame)) != sorted(SLICES):
        tested = ", ".join(f"{length}x{pairs}" for length, pairs in slices(frame)) or "no slices"
        raise UserError(
            f"the published points are means over {', '.join(f'{length}x{pairs}' for length, pairs in SLICES)}; "
            f"these rows were tested on {tested}. Plot the suite figure2, or leave --published away."
        )


def against_published(points: pd.DataFrame, x: str = AXES[0]) -> pd.DataFrame:
    """The points with `published` (accuracy) and `difference` (ours minus theirs), NaN where nothing was published.

    A family and x, one of the two published byte counts, name a published point, which is the best run of that size.
    So of ours that were trained alike, only the best of each size has it.
    """
    known = published().dropna(subset=[x]).drop_duplicates(["family", x]).set_index(["family", x])["accuracy"]
    pairs = pd.MultiIndex.from_frame(points[["family", x]])
    theirs = pd.Series(known.reindex(pairs).to_numpy(), index=points.index)
    if "init" in points.columns:
        theirs = theirs.mask(points["family"].isin(ONLY_PUBLISHED_INIT) & (points["init"] != "published"))
    alike = ["family", x, *(name for name in _TRAINING if name in points.columns)]
    theirs = theirs.where(points["accuracy"] == points.groupby(alike, dropna=False)["accuracy"].transform("max"))
    return points.assign(published=theirs, difference=points["accuracy"] - theirs)
