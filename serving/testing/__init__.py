"""Fakes for what serves a student, shipped for tests and benchmarks: replicas, and a vLLM server's API over
an engine in this process."""
