"""Measurements. Nothing of gancomp imports this package; it runs from a checkout (`make bench`)."""
