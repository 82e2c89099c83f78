"""The monitor graph: from a batch of answers to diagnoses."""
