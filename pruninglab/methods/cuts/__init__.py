"""Methods that cut weights, at once or step by step."""
