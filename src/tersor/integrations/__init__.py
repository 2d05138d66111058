"""One thin adapter per framework, each importable alone."""
