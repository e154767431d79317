"""From a model and example inputs to a graph that is the same model.

The model runs once on the meta device, on copies of its tensors without values, and each torch call becomes a node.
Read the files in this order:

The stage
    tracer: `trace`, from the model to the traced module.
    runs: one recorded run, in eval or in training.
    recorder: the mode that torch hands its calls to; a call becomes a node with a value.

The parts of a recorder
    scopes: which module calls are in progress, and whether calls are recorded now.
    graph_builder: nodes, which tensor each gives, and what it depends on.
    lowering: arguments of a call, as the graph takes them.
    results: what a call gives back to the model.
    size_nodes: nodes of sizes and of numbers computed from them; guards are noted there.
    real_values: values that the model's code asks for.
    number_tensors: whole numbers that go through tensors, as numbers.
    grad_regions: `torch.no_grad()` and its like.

Calls
    module_calls: modules and autograd Functions.
    special_calls: functions that ask for sizes, types or values.
    node_targets: the op and target of a node.
    aten: operators of ATen, as functions of torch.
    meta_results: results on the meta device, and their cache.
    library_modules: which modules are one node.
    patching: what is replaced while a model is traced, since no tracer sees it.

Numbers
    sizes: ints and floats that know how they were computed.
    repeated: lists that a size repeats.
    number_functions: `int`, `len`, `math` and `numpy` for such numbers.

After the run
    modes: what differs in training.
    guards, fixed_sizes, checks: where the code followed a size, and the input can change it.
    state: what the model keeps from one call to the next.
    assembly: the graph with its modules.
    traced_module: the class of the result.
    notes: what the result knows of its trace.
    refusals, user_code: what cannot be traced, and where an error comes from.

For other packages
    aliasing: which nodes share memory.
    constants: tensors that are plain attributes of a model.
    fingerprint, spelling: an architecture as a digest.
"""
