"""A user's jobs: plan, compress, verify, decompress, inspect. The command line only renders them."""
