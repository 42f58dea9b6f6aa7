"""Pure tensor functions of MegaContext: no nn.Module, no I/O, no state.

context_tree      levels, blocks, slots, protected tokens, reachable lengths
working_context   the entries of a focus: targets, positions, rows of the node table
focus_ops         validity, possible actions, and blockwise values of a focus
counter_rng       counter-based random numbers: a value is a function of (seed, sequence, variant)
entry_nll         mean uncompressed NLL of the tokens of an entry or a block
delta_nll         paired ΔNLL between a working context and the uncompressed baseline
substitutions     substitutes for gists in evaluation: dropped, mean, swapped
preference_pairs  pairs of variants with the signs that LensNet is trained on
step_metrics      metrics of a micro-batch as sums on the device
step_histograms   histograms and a sample of spans, on the device
"""
