"""Figures that the docs quote, with the commands that make them."""
