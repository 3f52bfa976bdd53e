"""Two revisions of a repository: what was committed, and nothing else."""

import errno
import os
import shutil
import subprocess

import pytest

from livepatch.build import from_git
from livepatch.core.model import LivepatchError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


class Repository:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments):
        environment = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    def commit(self, files, tag):
        for path, content in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", tag)
        self.git("tag", tag)


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "repository")
    made.commit({"pyproject.toml": "1", "src/p/m.py": "def f(): return 1", "tests/t.py": "1"}, "v1")
    made.commit({"src/p/m.py": "def f(): return 2", "tests/t.py": "2"}, "v2")
    return made


def refusal(*arguments):
    with pytest.raises(LivepatchError) as caught:
        from_git(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_revisions(repository):
    (repository.folder / "src/p/m.py").write_text("not even committed(")
    build = from_git("v1..v2", repository.folder)
    assert [(change.key, change.fate) for change in build.report.changes] == [("p.m:f", "carried"), (":", "note")]
    assert build.version == "v2"
    assert build.old.python == {"p/m.py": b"def f(): return 1"}


@pytest.mark.parametrize("span", ["v1..", "v1..HEAD", "HEAD~1..main", "main^..v2"])
def test_names_of_revisions(repository, span):
    assert [change.name for change in from_git(span, repository.folder).report.functions] == ["f"]


def test_a_revision_without_a_tag_is_called_by_its_hash(repository):
    repository.git("tag", "-d", "v1", "v2")
    assert repository.git("rev-parse", "HEAD").startswith(from_git("main^..", repository.folder).version)


def test_a_package_in_a_folder(repository):
    repository.commit({"services/a/p/m.py": "def g(): return 1", "services/b/q.py": "x = 1"}, "v3")
    repository.commit({"services/a/p/m.py": "def g(): return 2", "services/b/q.py": "x = 2"}, "v4")
    build = from_git("v3..v4", repository.folder / "services" / "a")
    assert [change.key for change in build.report.changes] == ["p.m:g"]
    assert "services/a is no folder in revision" in refusal("v1..v4", repository.folder / "services" / "a")


def test_links_stand_for_what_they_lead_to(repository):
    (repository.folder / "src" / "p" / "link.py").symlink_to("m.py")
    (repository.folder / "src" / "p" / "away.py").symlink_to("/etc/passwd")
    repository.commit({}, "v3")
    repository.commit({"src/p/m.py": "def f(): return 3"}, "v4")
    build = from_git("v3..v4", repository.folder)
    assert [change.key for change in build.report.functions] == ["p.link:f", "p.m:f"]
    assert sorted(build.new.python) == ["p/link.py", "p/m.py"]


def test_what_is_committed_counts_and_no_filter_is_run(repository, tmp_path):
    ran = tmp_path / "ran"
    repository.git("config", "filter.evil.smudge", f"touch {ran}; cat")
    repository.git("config", "core.fsmonitor", f"touch {ran}")
    repository.commit({".gitattributes": "*.py filter=evil ident\n"}, "v3")
    ran.unlink(missing_ok=True)
    assert from_git("v1..v3", repository.folder).report.functions
    assert not ran.exists()


def test_the_folder_decides_and_not_the_environment(repository, tmp_path, monkeypatch):
    other = Repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    assert from_git("v1..v2", repository.folder).report.functions


@pytest.mark.parametrize("span", ["v1", "v1...v2", "", "v1-v2"])
def test_what_is_no_range(repository, span):
    assert refusal(span, repository.folder) == f"{span!r} is not a range of revisions; write REV1..REV2."


@pytest.mark.parametrize("revision", ["v9", "--all", "-h", "v1:src"])
def test_a_revision_that_is_not_there(repository, revision):
    expected = f"The repository of {repository.folder} has no revision {revision!r}."
    assert refusal(f"{revision}..v2", repository.folder) == expected
    assert refusal(f"v1..{revision}", repository.folder) == expected


def test_no_repository(tmp_path):
    assert "not a git repository" in refusal("v1..v2", tmp_path)
    assert refusal("v1..v2", tmp_path / "none").startswith(f"git cannot read {tmp_path / 'none'}: ")


def test_no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LivepatchError, match="needs the program `git`") as caught:
        from_git("v1..v2", repository.folder)
    assert caught.value.errno == errno.ENOSYS


def test_nothing_is_fetched_for_a_partial_clone(repository, tmp_path):
    repository.git("config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    source = f"file://{repository.folder}"
    repository.git("clone", "-q", "--no-checkout", "--filter=blob:none", source, str(clone))
    assert refusal("v1..v2", clone)
