"""Notifications to systemd."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Speaks sd_notify to systemd; does nothing when the process was not started by it.

    Source: sd_notify(3). The watchdog is fed by a full turn of the main loop, so that a hung loop is a dead process.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def send(self, state: str) -> None:
        """Send one notification, for example READY=1; a full or missing socket is not waited for."""
        if self._socket is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(state.encode(), address)
        except OSError:
            pass  # systemd itself acts when the watchdog stays unfed

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
