"""The weights of a pruned model make up for the channels that are gone: `compensate` is the stage.

`correction` walks through both models in `lockstep` and makes the corrections: `reconstruction` of weights (by `ridge`
regression) and `recalibration` of BatchNorms. `holdout` judges them. `samples`
makes samples where there is no data: `photographs`, or inputs by `synthesis`.
"""
