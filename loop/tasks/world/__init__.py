"""The demo's world as a task: exact ground truth, a symbolic teacher, a tiny student."""
