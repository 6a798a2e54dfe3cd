"""Clusters of real nodes in a fake world; simulation.py says more of it."""
