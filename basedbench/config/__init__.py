"""Suites as typed data: YAML in, validated cases out."""

from basedbench.config.grid import expand_grid
from basedbench.config.identity import case_id
from basedbench.config.load import load_suite, parse_suite, suite_argument, suite_names
from basedbench.config.recall import RecallSuite
from basedbench.config.section import Section, Suite
from basedbench.config.throughput import ThroughputSuite

__all__ = [
    "RecallSuite",
    "Section",
    "Suite",
    "ThroughputSuite",
    "case_id",
    "expand_grid",
    "load_suite",
    "parse_suite",
    "suite_argument",
    "suite_names",
]
