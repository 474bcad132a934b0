"""Paths and URLs, and how they may be shown: without what opens doors."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

#: Parameters of a URL that say where something is, not who asks.
_PLAIN = {"endpoint_override", "scheme", "region", "allow_bucket_creation"}


def is_url(location: str) -> bool:
    """Whether a location is a URL and not a path."""
    return _URL.match(location) is not None


def redact(location: str) -> str:
    """A location as it may be shown and stored: without user, password and every parameter that may be a secret."""
    if not is_url(location):
        return location
    parts = urlsplit(location)
    query = urlencode([(key, value) for key, value in parse_qsl(parts.query) if key in _PLAIN], safe=":/")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def redact_all(text: str, location: str) -> str:
    """``text`` of somebody else's error, in which the location may stand with its credentials."""
    return text.replace(location, redact(location))
