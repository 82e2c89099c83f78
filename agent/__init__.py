"""What the teacher knows and decides: catalog, profile, drift, policy, selection, budget. Pure: no I/O, no
model, no clock."""
