"""Links: bytes in, bytes out."""
