"""What convolutions, linear layers, norms and residual connections are in a graph."""
