"""Pictures, plots, tables and pages out of results."""
