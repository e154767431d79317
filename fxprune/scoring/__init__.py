"""How much each channel matters: `criteria` knows the methods by name; those of more than a few lines have a file."""
