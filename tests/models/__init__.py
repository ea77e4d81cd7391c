"""Models of our own, small and whole."""
