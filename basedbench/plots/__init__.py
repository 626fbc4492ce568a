"""Figures: each takes a frame and returns a matplotlib Figure; `style.save` writes it."""
