"""How a model is run.

- `trees`: nested values, as models take and return them.
- `calls`: the arguments of a call, and the same at another batch size.
- `devices`: the device that a model is on.
- `copies`: copies of a model, also on the meta device.
- `eval_mode`: a model in eval, and as it was afterwards.
- `randomness`: seeds, and the caller's random states.
- `eager`: compiled and checkpointed code, run as the Python code that it was made of.
- `allocator`: freed memory, kept for the next tensor.
- `one_node`: one node of a graph.
"""
