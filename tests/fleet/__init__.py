"""Test beds that boot: real systemd in containers, a real kernel in an emulated machine, and packages for arm64."""
