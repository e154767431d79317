"""Files: checkpoints, exports, and how they are written whole."""
