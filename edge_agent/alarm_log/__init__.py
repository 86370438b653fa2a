"""The alarm log: what happened to every alarm and who acted, sealed, ordered and hash-chained."""
