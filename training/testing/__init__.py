"""What tests of training need, shipped so that nothing has to be patched."""
