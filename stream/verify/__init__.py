"""Comparing every row of both sides, and judging those that differ, while traffic runs.

README.md follows a table through it.
"""
