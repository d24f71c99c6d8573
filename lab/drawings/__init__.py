"""Figures of one run that take more lines than its script has room for."""
