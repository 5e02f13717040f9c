from __future__ import annotations

import datetime as dt
import shlex
import ssl
import sys

import pytest
from cryptography import x509

from preforkmx.app import demo
from preforkmx.app.demo import FOLDER, announcement, program
from preforkmx.app.demo_files import make_certificate, prepare
from preforkmx.app.site import load_configuration


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def listening(address, *, tls="starttls", protocol="smtp", proxy_protocol=False):
    return {"address": address, "tls": tls, "protocol": protocol, "proxy_protocol": proxy_protocol}


STATUS = {
    "version": "1.2.3",
    "listeners": [
        listening("unix:/run/lmtp.sock", protocol="lmtp", tls="off"),
        listening("unix:/run/smtp.sock"),
        listening("127.0.0.1:41003", proxy_protocol=True),
        listening("127.0.0.1:41001", tls="implicit"),
        listening("127.0.0.1:41000"),
    ],
    "admin": {"address": "127.0.0.1:41005", "state": "ready"},
}


def test_the_demos_certificate_is_for_localhost_and_its_key_for_this_user_alone():
    prepare()
    certificate = x509.load_pem_x509_certificate((FOLDER / "certificate.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert (FOLDER / "key.pem").stat().st_mode & 0o777 == 0o600
    assert FOLDER.stat().st_mode & 0o777 == 0o700
    client = ssl.create_default_context(cafile=FOLDER / "certificate.pem")
    assert client.cert_store_stats()["x509"] == 1


def test_a_certificate_that_is_still_good_is_kept():
    prepare()
    before = (FOLDER / "certificate.pem").read_bytes()
    prepare()
    assert (FOLDER / "certificate.pem").read_bytes() == before


@pytest.mark.parametrize("spoilt", ["certificate.pem", "key.pem"])
@pytest.mark.parametrize("how", ["missing", "nonsense", "of another pair"])
def test_a_pair_that_cannot_be_used_is_made_again(spoilt, how, tmp_path):
    prepare()
    path = FOLDER / spoilt
    if how == "missing":
        path.unlink()
    elif how == "nonsense":
        path.write_text("nonsense")
    else:
        make_certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
        path.write_bytes((tmp_path / spoilt).read_bytes())
    prepare()
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        FOLDER / "certificate.pem", FOLDER / "key.pem"
    )


def test_a_certificate_that_ends_within_a_week_is_made_again(monkeypatch):
    from preforkmx.app import demo_files

    with monkeypatch.context() as patch:
        patch.setattr(demo_files, "VALID_DAYS", 6)
        prepare()
    prepare()
    certificate = x509.load_pem_x509_certificate((FOLDER / "certificate.pem").read_bytes())
    assert certificate.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=300)


def test_the_announcement_says_where_mail_goes_in_and_comes_out(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/x/preforkmx"])
    text = announcement(load_configuration(None, None, {}, files=False), STATUS)
    assert "127.0.0.1:41000        SMTP, STARTTLS offered\n" in text
    assert "127.0.0.1:41001        SMTP, TLS from the start\n" in text
    assert "unix:/run/lmtp.sock    LMTP\n" in text
    assert "./preforkmx-data/mail/<domain>/<local part>/new/" in text
    assert "/opt/x/preforkmx status" in text
    assert "  metrics     http://127.0.0.1:41005/metrics\n" in text
    assert "8025" not in text
    assert "  try         451@example.com, 550@…" in text


def test_the_announcement_is_silent_about_an_admin_process_that_is_off():
    status = {**STATUS, "admin": {"address": "", "state": "gone"}}
    assert "http" not in announcement(load_configuration(None, None, {}, files=False), status)


def test_the_announcement_has_one_line_to_paste_for_the_port_that_is_open():
    environ = {"PREFORKMX_MIDDLEWARE__2__DELAY": "2s"}
    text = announcement(load_configuration(None, None, environ, files=False), STATUS)
    [line] = [line for line in text.splitlines() if line.startswith("python3 ")]
    command, option, script = shlex.split(line)
    assert (command, option) == ("python3", "-c")
    compile(script, "<pasted>", "exec")
    assert '("127.0.0.1", 41000)' in script
    assert "time.sleep(3)" in script


def test_an_application_has_nothing_to_paste_and_no_test_points():
    loaded = load_configuration(None, "mymx:server", {}, files=False)
    assert "451@" not in announcement(loaded, STATUS)
    assert not loaded.config.middleware
    assert "python3 -c" not in announcement(loaded, STATUS)


def test_the_command_is_named_as_it_can_be_typed(tmp_path, monkeypatch):
    command = tmp_path / "bin" / "preforkmx"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(command)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == "./bin/preforkmx"
    monkeypatch.setenv("PATH", str(command.parent))
    assert program() == "preforkmx"
    monkeypatch.setattr(sys, "argv", ["/lib/preforkmx/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert program() == "/usr/bin/python3 -m preforkmx"


def test_the_demo_keeps_everything_in_one_folder():
    config = load_configuration(None, None, {}, files=False).config
    folder = demo.FOLDER.absolute()
    for path in (
        config.delivery.path,
        config.admin.control,
        config.tls.certificate,
        config.tls.key,
    ):
        assert path.is_relative_to(folder)
