"""Keys, archives and a machine's files for the tests of trust and of installation; the real machine's do not count."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.agent.targets import Target

from livepatch.build import from_trees

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="signatures are NOT TESTED: no ssh-keygen")

#: What a target begins with, so that the machine's files are the test's.
ON_THIS_MACHINE = """
    import os, sys, time
    from livepatch.archive import installed, policy
    policy.SYSTEM, installed.SYSTEM = os.environ["TEST_ETC"], os.environ["TEST_VAR"]
"""

#: A service with a module `shop` that is imported when the test says so.
SERVICE = (
    ON_THIS_MACHINE
    + """
    sys.path.insert(0, os.environ["TEST_SOURCE"])
    import livepatch as lp
    lp.start_agent()
    say("ready")
    while (word := hear()):
        if word == "ask":
            try:
                import shop
                say(shop.price())
            except ImportError as error:
                say("refused", error)
        if word == "patches": say(*[patch.name for patch in lp.patches()])
        if word == "log": say(" | ".join(lp.dmesg()))
"""
)

OLD, NEW = "def price():\n    return 'old'\n", "def price():\n    return 'new'\n"


class Machine:
    """One machine with one user, below a folder; `env` is what a process on it has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.etc, self.var, self.source = root / "etc", root / "var", root / "source"
        self.config, self.data = root / "config" / "livepatch", root / "data" / "livepatch"
        for folder in (self.etc, self.var, self.source, self.config, self.data):
            folder.mkdir(parents=True)
        self.env = {
            "TEST_ETC": str(self.etc),
            "TEST_VAR": str(self.var),
            "TEST_SOURCE": str(self.source),
            "XDG_CONFIG_HOME": str(self.config.parent),
            "XDG_DATA_HOME": str(self.data.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.have(OLD)

    def have(self, text: str, name: str = "shop") -> None:
        """The source of a module as it is on this machine."""
        (self.source / f"{name}.py").write_text(text)

    def archive(self, name="fix", old=OLD, new=NEW, module="shop", **options) -> Path:
        """An archive from one version of a module to another."""
        return self.archive_of(name, {module: (old, new)}, **options)

    def archive_of(self, name, modules, **options) -> Path:
        """An archive of several modules, each with its old and its new version."""
        trees = []
        for number, version in enumerate(("old", "new")):
            tree = self.root / "trees" / name / version
            tree.mkdir(parents=True, exist_ok=True)
            for module, texts in modules.items():
                (tree / f"{module}.py").write_text(texts[number])
            trees.append(tree)
        file = self.root / f"{name}.livepatch"
        file.write_bytes(from_trees(*trees).archive(name, **options))
        return file

    def strict(self, folder: Path, *signers: str, refuse_start: bool = False) -> None:
        """Strict mode, with lines of allowed signers."""
        (folder / "config.toml").write_text("strict = true\n" + "refuse_start = true\n" * refuse_start)
        (folder / "allowed_signers").write_text("".join(f"{line}\n" for line in signers))

    def service(self, **env: str) -> Target:
        target = Target(SERVICE, env=self.env | env)
        assert target.hear() == "ready"
        return target


class Key:
    """An OpenSSH key, and its line for a list of allowed signers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.path)]
        subprocess.run(command, check=True)
        self.public = " ".join((folder / f"{name}.pub").read_text().split()[:2])

    def line(self, options: str = "") -> str:
        return " ".join(filter(None, [f"{self.name}@shop", options, self.public]))


def asked(target: Target, word: str = "ask") -> str:
    target.say(word)
    return target.hear()


def is_root() -> bool:
    return os.geteuid() == 0
