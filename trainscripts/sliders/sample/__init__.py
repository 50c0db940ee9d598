"""Prompts and multipliers become pictures, grids, measures of change, and a page."""
