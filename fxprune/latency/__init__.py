"""Time: measured of models, told apart by channels, and kept as a budget."""
