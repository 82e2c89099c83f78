"""The demo's world: generated problems with exact ground truth, a symbolic teacher and a tiny student."""
