"""Tokenizers, one file a family."""
