"""The Python client: ``from conure.client import Client``; client.py says what it does."""

from conure.client.client import *  # noqa: F403  # its __all__ is what there is
