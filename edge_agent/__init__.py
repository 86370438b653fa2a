"""The bedside agent: bytes from monitors in, local alarms out, every record sealed. Not a medical device."""

__version__ = "0.1.0"

NOTICE = (
    "Research and education software. Not a medical device. Not cleared by FDA/CE. "
    "Do not use for diagnosis, treatment or as the only alarm."
)
