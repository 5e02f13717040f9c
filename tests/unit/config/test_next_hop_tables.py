"""Deliveries to other servers, as the file has them: the guide's examples, and rules of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.app.chain import make_delivery
from preforkmx.app.demo_files import make_certificate
from preforkmx.config.delivery_tables import Lmtp, Smtp
from preforkmx.config.load import Document, load
from preforkmx.errors import ConfigError
from preforkmx.state.local import LocalStore

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "hand-mail-on.md"
OPEN = """
hostname = "mx.example.com"
domains = ["*"]

[[listener]]
address = "{address}"
{more}
[delivery]
use = "{use}"
servers = ["192.0.2.10:25"]
"""
AUTH = '[[middleware]]\nuse = "require_auth"\n'


def read(text, folder=Path()):
    return load(Document(text, "x.toml", folder), {}).config


def test_the_guide_s_examples_are_deliveries(tmp_path):
    (tmp_path / "password").write_text("s3cret\n")
    make_certificate(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    blocks = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for text, model, name in zip(blocks, (Lmtp, Smtp, Smtp), ("lmtp", "smtp", "smtp"), strict=True):
        table = read(text, tmp_path).delivery
        assert isinstance(table, model)
        assert make_delivery(table, "mx.example.com", LocalStore()).name == name


def test_the_guide_s_python_is_a_server():
    [code] = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["server"].delivery.name == "lmtp"


@pytest.mark.parametrize(
    ("address", "use", "more"),
    [
        ("127.0.0.1:25", "smtp", ""),
        ("unix:/run/x", "smtp", ""),
        ("0.0.0.0:25", "smtp", AUTH),
        ("0.0.0.0:25", "lmtp", ""),
    ],
)
def test_a_relay_that_is_not_open_may_have_any_domain(address, use, more):
    assert read(OPEN.format(address=address, use=use, more=more)).domains == ("*",)


def test_an_open_relay_refuses_to_start():
    with pytest.raises(ConfigError, match="open relay"):
        read(OPEN.format(address="[::]:25", use="smtp", more=""))


def test_connections_to_the_next_hop_are_open_files_too(monkeypatch):
    monkeypatch.setattr("preforkmx.config.load.most_open_files", lambda: 1000)
    text = OPEN.format(address="127.0.0.1:25", use="smtp", more="[workers]\nmax_sessions = 700\n")
    read(text + "connections = 44\n")
    with pytest.raises(ConfigError, match="at most 699"):
        read(text + "connections = 45\n")


def test_a_socket_s_path_is_relative_to_the_file(tmp_path):
    text = OPEN.format(address="127.0.0.1:25", use="lmtp", more="")
    text = text.replace("192.0.2.10:25", "unix:run/lmtp")
    assert read(text, tmp_path).delivery.servers == (f"unix:{tmp_path}/run/lmtp",)
