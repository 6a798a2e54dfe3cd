"""Deliberate faults, each of which the tests must notice; see ``__main__.py``."""
