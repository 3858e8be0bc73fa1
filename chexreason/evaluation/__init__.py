"""Scores with intervals, the comparison of checkpoints, and what it found."""
