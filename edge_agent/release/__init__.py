"""Releases of the gateway's software: built and signed on one machine, verified and installed on the others."""
