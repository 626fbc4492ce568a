"""What comes back from a round."""

from dataclasses import dataclass

from basedbench.timing.telemetry import Reading


@dataclass(frozen=True)
class Round:
    """The samples of one round, and the state of the card before and after. `exposed`: see `samplers`.

    `seconds` are those of its warm-up and sampling alone.
    """

    samples_ms: list[float]
    readings: list[Reading | None]
    exposed: int = 0
    seconds: float = 0.0
