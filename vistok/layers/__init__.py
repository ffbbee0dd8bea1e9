"""Building blocks that several families share; nothing here belongs to one paper."""
