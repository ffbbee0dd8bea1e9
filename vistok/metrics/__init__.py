"""Measuring tokenizers and generators, under named protocols."""
