"""What the layers of a graph are: convolutions and linear layers, BatchNorms, residual connections, and gate places."""
