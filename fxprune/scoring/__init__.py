"""How much each channel matters. `criteria` has the methods by name; those of more than a few lines have files.

From weights: `relevance`, with `channel_view` and `energies`. From data: `sensitivity` (first and second order), with
`gate_gradients` and `output_losses`; `surgeon`, with `layer_statistics`, `refitting` and `calibration`.
"""
