"""Time: `measure` models, find the time that `channels` cost, and plan for a `budget` of time."""
