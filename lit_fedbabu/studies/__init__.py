"""Studies: many runs that differ in a few options."""
