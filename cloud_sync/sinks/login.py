"""What a sink logs in with: certificates and secrets that its table names, read when the forwarder starts."""

from __future__ import annotations

import ssl
from pathlib import Path

from edge_agent import config


def tls(
    loaded: config.Loaded, table: str, ca: Path | None, certificate: Path | None, private_key: Path | None
) -> ssl.SSLContext:
    """A client's TLS with the authorities of `ca`, or the system's, and a certificate of its own when there is one.

    Raises: config.ConfigError naming the key of `[cloud.<table>]` whose file cannot be used.
    """
    key, path = "ca", ca and loaded.resolve(ca)
    try:
        context = ssl.create_default_context(cafile=path)
        if certificate is not None and private_key is not None:
            key, path = "certificate", loaded.resolve(certificate)
            path.read_bytes()
            context.load_cert_chain(path, loaded.resolve(private_key))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise loaded.error(("cloud", table, key), f"{path} cannot be used: {reason}", "give a PEM file") from error
    return context


def secret(loaded: config.Loaded, table: str, key: str, spec: str) -> str:
    """The text of the secret that `spec` names. Raises: config.ConfigError naming `key` of `[cloud.<table>]`."""
    try:
        return config.secret(loaded, spec)
    except OSError as error:
        raise loaded.error(("cloud", table, key), str(error), "the secret must exist and be readable") from error
