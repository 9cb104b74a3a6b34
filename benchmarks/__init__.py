"""Figures that the docs quote, with the commands that make them.

Each module measures one thing beside its peers and floors, in one run:
`run(full: bool) -> dict[str, float]`, the figures by name.
"""
