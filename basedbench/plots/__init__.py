"""Figures: each takes a frame and returns a matplotlib Figure; `style.save` writes it."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it may keep its caches is no matter of a figure
