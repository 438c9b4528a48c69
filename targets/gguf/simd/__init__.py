"""ggml's searches for scales, a vector of blocks at a time: the same bytes, several times as fast.

ggml sums up a block value by value, in order, and so has to be computed one value after the other. Here a vector holds
the same place of sixteen blocks, and each lane does what ggml does with its block: every operation is the same one in
the same order, so every bit comes out the same. Whether that holds for the ggml that is installed (a compiler may fuse
or reorder) is tried before it is relied upon.
"""
