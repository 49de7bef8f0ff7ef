"""Methods for whole channels."""
