"""The language-model teacher over any OpenAI-compatible server."""
