"""What the tutorial and the how-to guide show can be used as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preforkmx.app.code import find, to_middleware
from preforkmx.app.site import Site
from preforkmx.config.load import Document, load

DOCS = Path(__file__).parents[3] / "docs"
TUTORIAL = DOCS / "tutorial" / "first-steps.md"
GUIDE = DOCS / "how-to" / "configure-a-site.md"
BEHIND = DOCS / "how-to" / "behind-haproxy.md"


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_tables_of_the_guide_make_one_configuration():
    text = "\n".join(blocks(GUIDE, "toml"))
    loaded = load(Document(text, "guide", Path.cwd()), {}, look_at_files=False)
    assert len(loaded.config.middleware) == 3


def test_the_listeners_of_the_page_about_proxies_are_right_beside_each_other():
    site = 'hostname = "mx.example.com"\ndomains = ["example.com"]\n'
    rest = '[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n[delivery]\nuse = "discard"'
    text = "\n".join([site, *blocks(BEHIND, "toml"), rest])
    document = Document(text, "page", Path.cwd())
    listeners = load(document, {}, look_at_files=False).config.listener
    plain, implicit, _, xclient, lmtp = listeners
    assert plain.proxy_protocol
    assert (implicit.proxy_protocol, implicit.tls) == (True, "implicit")
    assert xclient.xclient_from
    assert lmtp.protocol == "lmtp"


def test_every_listener_behind_haproxy_is_one_of_haproxys_servers():
    """What the page tells HAProxy fits what it tells preforkmx."""
    [haproxy] = blocks(BEHIND, "haproxy")
    ports = {
        int(port) for port in re.findall(r"server mx1 192\.0\.2\.10:(\d+) send-proxy", haproxy)
    }
    first = blocks(BEHIND, "toml")[0]
    assert ports == {int(port) for port in re.findall(r'"192\.0\.2\.10:(\d+)"', first)}
    assert haproxy.count("send-proxy-v2") == haproxy.count("check-send-proxy") == 4


@pytest.mark.parametrize(
    ("page", "option"), [(TUTORIAL, {}), (GUIDE, {"domains": ["example.org"]})]
)
def test_the_code_of_each_page_is_middleware(page, option, tmp_path, monkeypatch):
    [code] = blocks(page, "python")
    name = f"documented_{page.stem.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    [spec] = re.findall(r'"mysite:(\w+)"', "".join(blocks(page, "toml")))
    assert to_middleware(find(f"{name}:{spec}"), option).name == spec


def test_the_configuration_of_the_tutorial_is_right(tmp_path, monkeypatch):
    [text] = blocks(TUTORIAL, "toml")
    path = tmp_path / "preforkmx.toml"
    path.write_text(text)
    assert Site.read(path, None, {}).plan().hostname == "localhost"


def test_the_commands_page_names_every_verb():
    from preforkmx.cli import VERBS

    text = (DOCS / "reference" / "commands.md").read_text()
    for verb in VERBS:
        assert f"`preforkmx {verb} " in text
