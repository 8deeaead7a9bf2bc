"""Tables and the statements on them, a file for each noun. The caller owns the transaction."""
