"""Products for many tokens on Hopper: weights decoded into shared memory, multiplied by wgmma."""
