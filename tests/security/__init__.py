"""Tests of who may connect."""
