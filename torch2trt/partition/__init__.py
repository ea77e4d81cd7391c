"""Which parts of a Program become engines, and which run in torch."""
