"""The table under the frontier figure, where it has more columns than two blocks side by side can hold."""

from basedbench.plots.style import new_figure
from basedbench.plots.tables import draw_table, table_height


def test_columns_with_published_points_do_not_overlap():
    heading = ["", "family", "model", "state zoology", "accuracy", "lr", "seeds", "published", "difference"]
    row = ["*", "Sliding window", "d128 w64", "65.5 KiB", "0.514", "0.00316", "1", "0.513", "+0.001"]
    rows = [heading, row, row]
    figure = new_figure("double", table_height(rows, "double"))
    axes = figure.add_subplot()
    axes.set_axis_off()
    figure.draw_without_rendering()
    draw_table(axes, rows, "double")
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert not [1 for index, box in enumerate(boxes) if any(box.overlaps(other) for other in boxes[:index])]
