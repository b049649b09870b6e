"""Which addresses events may be sent to."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fabric.contracts.webhook import Webhook
from fabric.webhooks.reach import is_public


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        "2001:0:a00:1::f5ff:fffe",
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "http://example.com/"}, "use https"),
        ({"url": "https://user:pass@example.com/"}, "pattern"),
        ({"url": "ftp://example.com/"}, "pattern"),
        ({"events": []}, "at least 1"),
        ({"events": ["job.succeeded", "job.succeeded"]}, "twice"),
        ({"events": ["job.started"]}, "Input should be"),
        ({"secret": "x"}, "Extra"),
    ],
)
def test_what_is_no_webhook(change: dict[str, object], said: str) -> None:
    good = {"name": "a", "url": "https://example.com/", "secret_env": "S", "events": ["job.succeeded"]}
    Webhook.model_validate(good)
    with pytest.raises(ValidationError, match=said):
        Webhook.model_validate(good | change)
