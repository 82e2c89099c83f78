"""The composition root: configuration, wiring, workers, command line, demo."""
