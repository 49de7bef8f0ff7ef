"""Methods that train with noise on the weights and prune what the noise does not hurt."""
