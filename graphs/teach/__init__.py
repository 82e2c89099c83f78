"""The agent's own step: from what is known of a student to the round that follows."""
