"""Pure tensor functions of MegaContext: no nn.Module, no I/O, no state.

tree         levels, blocks, slots, protected tokens, reachable lengths
working_context  a focus unrolled: entries, targets, positions, rows of the node table
focus            validity, legality, block-wise views of a focus
seeding          counter-based random numbers: a value is a function of (seed, sequence, variant)
surprise         how hard the uncompressed model found each entry's own tokens
pairing          paired ΔNLL between a working context and the uncompressed baseline
statistics       sums that a step hands over, without reading any of them
"""
