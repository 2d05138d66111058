"""Attention of one new token over a static cache: what a decode step does besides its products."""
