"""How users reach the student: an OpenAI-compatible gateway that captures answers as events."""
