"""Methods that add a term to the loss, or shrink weights beside it."""
