"""A page to play with: ``vistok serve``."""
