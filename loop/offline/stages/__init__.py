"""The stages of the offline method, one file each."""
