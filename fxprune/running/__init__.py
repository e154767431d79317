"""How a model is run: calls, copies, devices, modes, random states, memory."""
