"""From a model and example inputs to a graph that is the same model: the stage is in `tracer`."""
