"""Learned gates: which channels to keep, as a network learns it from the weights (Dagger, arXiv 2010.15041).

Read in this order:

- `dagger`: the network that computes gates from weights.
- `weight_argument`: layers that can be called with a weight times gates.
- `gating`: the passes that insert gates into a graph and remove them.
- `cost`: what open gates cost, and how they meet a budget.
- `choosing`: which of several sets of gates loses least.
- `orders`: the orders that gates start from.
- `run`: the state of a run, and one step.
- `learning`: the whole run.
"""

from fxprune.gates.gating import insert_gates, remove_gates
from fxprune.gates.learning import learn_gates
from fxprune.gates.run import Gates

__all__ = ["Gates", "insert_gates", "learn_gates", "remove_gates"]
