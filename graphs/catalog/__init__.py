"""The catalog graph: from questions to a skill catalog."""
