"""Grids: layout, tokens, schedule, spans."""
