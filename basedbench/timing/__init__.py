"""Timing: each case checked, then measured in many short rounds, with an interval that holds. See docs/METHODOLOGY.md.

Nothing here imports torch at module level except what runs inside a worker process: results are compared without it.
"""
