"""The curate graph: from a plan to a data set."""
