"""Connections, whatever is spoken on them."""
