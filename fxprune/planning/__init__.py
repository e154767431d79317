"""Scores and budgets -> a plan: `make` is the stage."""
