"""Which channels of a network can only go together, and how they are taken out of it."""
