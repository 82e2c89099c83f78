"""How a student answers: the engine port and its engines."""
