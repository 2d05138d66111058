"""Torch operators over the codecs: `tersor.kernels.ops`. Importing this package alone costs nothing."""
