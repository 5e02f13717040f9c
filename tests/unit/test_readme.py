"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from preforkmx import Middleware, Server

README = Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def test_the_middleware_is_one():
    site: dict = {}
    exec(blocks("python")[0], site)
    assert isinstance(site["no_bounces"](), Middleware)


def test_the_configuration_with_the_middleware_is_right(tmp_path):
    """check-config runs in a folder that has both, as the reader would have made it."""
    (tmp_path / "mysite.py").write_text(blocks("python")[0])
    (tmp_path / "preforkmx.toml").write_text(blocks("toml")[0])
    result = subprocess.run(
        [sys.executable, "-m", "preforkmx", "check-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout


def test_the_library_s_server_is_one():
    site: dict = {}
    exec(blocks("python")[1], site)
    assert isinstance(site["server"], Server)


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README.read_text("utf-8")):
        assert (README.parent / target).exists(), target
