"""Difficulty filters and the grading of final answers."""
