"""What stays makes up for what goes: the stage is in `compensate`."""
