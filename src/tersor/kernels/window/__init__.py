"""The `fast` layout in memory: a 3-bit window of exponents in tensor-core order, exceptions apart."""
