"""What checked kernels were found to do wrong: collected here, and shown from here."""
