"""Playback of PCM through ALSA's library, by ctypes: writes that never wait, dropped at once when a sound is cut.

Called directly, because the packages that wrap it do not fit a bedside: pyalsaaudio has no built wheels and would need
a compiler there, sounddevice needs PortAudio besides.

A sound that fits the buffer is written whole, so that nothing this process does can tear it. That costs no latency:
playing starts with the first write, and a cut drops what is left. An underrun is how a sound ends here (nothing
follows), so it is no fault: the next sound prepares the device anew.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any

from edge_agent.annunciators.output import FaultError

LIBRARY = "libasound.so.2"
BUFFER_MS = 500  # holds the longest pulse with its rise and fall
_PLAYBACK, _NONBLOCK, _S16_LE, _RW_INTERLEAVED = 0, 1, 2, 3
_PREPARED, _RUNNING, _DISCONNECTED = 2, 3, 8  # snd_pcm_state_t
_RESAMPLE = 1  # let ALSA convert the rate where the device has another
_BYTES = 2  # a frame: 16 bit, mono
_LOOK = "`aplay -L` lists the devices (package alsa-utils)"

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
# the library writes each failure to standard error too; ours is in the technical alarm, and comes every 5 s
_quiet = _HANDLER(lambda *_: None)


def library() -> Any:
    """ALSA's library, loaded.

    Raises: FaultError when this machine has none.
    """
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise FaultError(f"{LIBRARY} is not installed: `apt install libasound2`; then {_LOOK}") from error
    handle, frames = ctypes.c_void_p, ctypes.c_long
    found.snd_strerror.restype = ctypes.c_char_p
    found.snd_pcm_open.argtypes = (ctypes.POINTER(handle), ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    found.snd_pcm_set_params.argtypes = (
        handle,
        *([ctypes.c_int] * 2),
        *([ctypes.c_uint] * 2),
        ctypes.c_int,
        ctypes.c_uint,
    )
    found.snd_pcm_writei.argtypes, found.snd_pcm_writei.restype = (handle, ctypes.c_char_p, ctypes.c_ulong), frames
    found.snd_pcm_avail_update.argtypes, found.snd_pcm_avail_update.restype = (handle,), frames
    found.snd_pcm_get_params.argtypes = (handle, ctypes.POINTER(ctypes.c_ulong), ctypes.POINTER(ctypes.c_ulong))
    for name in ("snd_pcm_state", "snd_pcm_start", "snd_pcm_drop", "snd_pcm_prepare", "snd_pcm_close"):
        getattr(found, name).argtypes = (handle,)
    found.snd_lib_error_set_handler(_quiet)
    return found


class Playback:
    """One ALSA device, open for 16-bit mono PCM at `rate_hz`.

    Raises: FaultError when the device cannot be opened or has no such format.
    """

    def __init__(self, device: str, rate_hz: int) -> None:
        self._device = device
        self._library = library()
        self._handle = ctypes.c_void_p()
        code = self._library.snd_pcm_open(ctypes.byref(self._handle), device.encode(), _PLAYBACK, _NONBLOCK)
        if code < 0:
            raise FaultError(f"sound device {device!r} cannot be opened: {self._reason(code)}; {_LOOK}")
        code = self._library.snd_pcm_set_params(
            self._handle, _S16_LE, _RW_INTERLEAVED, 1, rate_hz, _RESAMPLE, BUFFER_MS * 1000
        )
        if code < 0:
            self.close()
            raise FaultError(
                f"sound device {device!r} does not take 16-bit mono at {rate_hz} Hz: {self._reason(code)}; "
                f"choose one that converts, such as plughw:..., {_LOOK}"
            )
        size, period = ctypes.c_ulong(), ctypes.c_ulong()
        self._library.snd_pcm_get_params(self._handle, ctypes.byref(size), ctypes.byref(period))
        self._size = size.value

    def restart(self) -> None:
        """Drop what has not been heard yet and make ready for a new sound.

        Raises: FaultError.
        """
        self._must(self._library.snd_pcm_drop(self._handle))
        self._must(self._library.snd_pcm_prepare(self._handle))

    def write(self, data: bytes) -> int:
        """How many bytes the device took without waiting; playing starts with the first.

        Raises: FaultError.
        """
        for _ in range(2):
            done = int(self._library.snd_pcm_writei(self._handle, data, len(data) // _BYTES))
            if done == -errno.EAGAIN:
                return 0
            if done in (-errno.EPIPE, -errno.ESTRPIPE):  # underrun, or the machine slept
                self._must(self._library.snd_pcm_prepare(self._handle))
                continue
            self._must(done)
            if done and self._library.snd_pcm_state(self._handle) == _PREPARED:
                self._must(self._library.snd_pcm_start(self._handle))
            return done * _BYTES
        raise FaultError(f"sound device {self._device!r} stops as soon as it starts; {_LOOK}")

    def stop(self) -> None:
        """Silence at once.

        Raises: FaultError.
        """
        self._must(self._library.snd_pcm_drop(self._handle))

    def check(self) -> None:
        """Look whether the device is still there.

        Raises: FaultError.
        """
        if self._library.snd_pcm_state(self._handle) == _DISCONNECTED:
            self._must(-errno.ENODEV)

    def finished(self) -> bool:
        """Whether all that was written has been played.

        Raises: FaultError.
        """
        if self._library.snd_pcm_state(self._handle) != _RUNNING:
            self.check()
            return True
        free = int(self._library.snd_pcm_avail_update(self._handle))
        if free == -errno.EPIPE:
            return True
        self._must(free)
        return free >= self._size

    def close(self) -> None:
        """Give the device back."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        if handle:
            self._library.snd_pcm_close(handle)

    def _must(self, code: int) -> None:
        if code < 0:
            raise FaultError(
                f"sound device {self._device!r} has failed: {self._reason(code)}; look to its plug, {_LOOK}"
            )

    def _reason(self, code: int) -> str:
        return str(self._library.snd_strerror(code).decode(errors="replace"))
