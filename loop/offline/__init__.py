"""The offline method of the paper, stage by stage: `skillloop stat` (arXiv 2510.10023)."""
