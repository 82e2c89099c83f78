"""What a student is for: questions, grading, pools, held-out sets."""
