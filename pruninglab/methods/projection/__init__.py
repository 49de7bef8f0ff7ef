"""Methods that pull weights towards a constraint: so many non-zeros, or so many values."""
