"""What the command line adds to the package: words for a shell, and a notebook to begin with."""
