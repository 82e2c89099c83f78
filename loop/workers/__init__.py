"""The workers that carry answers into the profile and rounds to their end."""
