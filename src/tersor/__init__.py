"""tersor: terse weights for large language models."""

from tersor._version import __version__

__all__ = ["__version__"]
