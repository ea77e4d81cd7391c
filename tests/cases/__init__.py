"""Rows for the operator test, one table a converter file."""
