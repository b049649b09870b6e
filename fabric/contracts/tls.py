"""Why a server's certificate wasn't believed, in words that say what to do. No word of them is the server's."""

from __future__ import annotations

import ssl

#: Of OpenSSL's ``X509_V_ERR_*``.
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


def distrust(error: BaseException, ca_setting: str) -> str | None:
    """A sentence, or ``None`` where ``error`` and what led to it have nothing to do with TLS. ``ca_setting``: the
    setting that names the authority."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return _said(seen.verify_code, ca_setting)
        if isinstance(seen, ssl.SSLError):
            return "TLS fails: does that port speak TLS, in version 1.2 or later?"
        seen = seen.__cause__ or seen.__context__
    return None


def _said(code: int, ca_setting: str) -> str:
    if code == _EXPIRED:
        return "Its certificate has expired: renew it."
    if code == _NOT_YET:
        return "Its certificate isn't valid yet: set the clocks of both machines."
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return (
            "Its certificate is for another name: put the name that it is for into the URL, or make one for this name."
        )
    return f"Its certificate is signed by nobody who is trusted here: name the authority's file with {ca_setting}."
