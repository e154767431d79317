"""Scores and budgets -> a plan: the stage is in `make`."""
