"""Watching the loop: nothing here has an influence on it."""
