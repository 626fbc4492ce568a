"""When a case has been sampled enough, and what is said about why it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from basedbench.timing.statistics import median_interval

# Below three rounds there is no interval worth publishing.
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class StoppingRule:
    """Enough is: the median known to within `precision`; or `seconds` of sampling; or `max_rounds`."""

    precision: float = 0.005
    min_rounds: int = 7
    max_rounds: int = 40
    seconds: float = 3.0

    def reason(self, rounds: Sequence[Sequence[float]], spent_s: float) -> str | None:
        """Why to stop after these rounds of samples, or None to go on."""
        if len(rounds) < min(FEWEST_ROUNDS, self.max_rounds):
            return None
        if len(rounds) >= self.min_rounds and self._converged(rounds):
            return "converged"
        if len(rounds) >= self.max_rounds:
            return f"{self.max_rounds} rounds"
        return f"time limit of {self.seconds:g} s" if spent_s >= self.seconds else None

    def _converged(self, rounds: Sequence[Sequence[float]]) -> bool:
        samples = [sample for one in rounds for sample in one]
        low, high = median_interval(samples)
        return high - low <= 2 * self.precision * median(samples)
