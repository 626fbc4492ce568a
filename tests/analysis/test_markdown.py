"""Tables as Markdown, whatever the rows' texts are."""

from basedbench.analysis.markdown import replace_section, section, table


def test_no_text_ends_a_cell_or_the_section():
    written = table(["a", "b"], [["x|y", "two\nlines <!-- t:end -->"]])
    assert written.splitlines()[2] == "| x\\|y | two lines &lt;!-- t:end --> |"
    page = "<!-- t:begin -->\n<!-- t:end -->\n"
    for _ in range(2):
        page = replace_section(page, "t", written)
    assert section(page, "t") == written
