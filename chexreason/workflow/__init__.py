"""Notebooks, the book, the plan of a study."""
