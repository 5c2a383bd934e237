"""How a bridge reaches its broker over TLS: whom it trusts, and what it shows of itself.

Rules that this module keeps:

- The broker is always verified, its name included; there is no switch that turns that off.
- Files are checked before anything starts, each complaint under the key of the file that is wrong, and read
  again for each connection, so that a renewed certificate needs no restart.
- ``ssl`` is imported where it is used: the settings are read before the first answer, and most name no file.
- A private key is a file without a passphrase: an agent has nobody to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import ssl

#: Says which key is wrong: the key, its value and what was expected. Never returns.
Complain = Callable[[str, object, str], NoReturn]


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeTls:
    """The names are the keys of ``[[bridge]]``."""

    #: PEM certificates of the authorities that are trusted; None: those of the system.
    ca_file: Path | None = None
    #: What the bridge shows of itself; None: nothing.
    certificate_file: Path | None = None
    #: None: the key is in ``certificate_file``.
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A fresh one of what the files hold now. Raises ``OSError`` (as ``ssl.SSLError`` is one)."""
        made = _trusting(self.ca_file)
        if self.certificate_file is not None:
            made.load_cert_chain(self.certificate_file, self.key_file, password=_nobody_to_ask)
        return made

    def check(self, complain: Complain) -> None:
        """Calls ``complain`` for the first file that cannot be used."""
        if self.key_file is not None and self.certificate_file is None:
            complain("key_file", str(self.key_file), "a certificate_file beside it")
        try:
            _trusting(self.ca_file)
        except OSError as error:
            complain("ca_file", str(self.ca_file), f"a file of PEM certificates ({_reason(error)})")
        if self.certificate_file is None:
            return
        try:
            _trusting(self.certificate_file)
        except OSError as error:
            complain(
                "certificate_file",
                str(self.certificate_file),
                f"a file of PEM certificates ({_reason(error)})",
            )
        try:
            self.context()
        except OSError as error:
            reason = _reason(error)
            if self.key_file is not None:
                complain(
                    "key_file",
                    str(self.key_file),
                    "the private key of certificate_file in PEM, without a passphrase, that the agent may "
                    f"read ({reason})",
                )
            complain(
                "certificate_file",
                str(self.certificate_file),
                "a file that holds its private key too (PEM, no passphrase), or a key_file beside it "
                f"({reason})",
            )


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    import ssl

    made = ssl.create_default_context(cafile=ca_file)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def _nobody_to_ask() -> str:
    # Without this, OpenSSL would ask on the terminal.
    return ""


def _reason(error: OSError) -> str:
    return error.strerror or getattr(error, "reason", None) or str(error) or type(error).__name__
