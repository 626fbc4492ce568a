"""Which cases `--filter` chooses."""

import warnings

import pytest

from basedbench.errors import UserError, filter_of


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 3000])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="is not a regular expression"):
        filter_of(pattern)


def test_what_another_python_may_read_otherwise_is_no_warning() -> None:
    with warnings.catch_warnings(action="error"):
        assert filter_of("[[a]").search("a")
