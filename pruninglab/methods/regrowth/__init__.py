"""Methods that cut weights and bring others back."""
