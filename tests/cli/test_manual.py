"""The manual has all that --help says, and formatters take it without a word."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest

from livepatch import __version__
from livepatch.cli import manual
from livepatch.cli.app import COMMANDS, livepatch

ROOT = Path(__file__).resolve().parent.parent.parent


def words(text):
    """Text as words, with what formatters and tables do to it undone."""
    return " ".join(text.replace("\N{HYPHEN}", "-").replace("\\", "").replace("`", "").split())


@pytest.fixture(scope="module")
def page():
    return manual.roff()


@pytest.fixture(scope="module")
def shown(page):
    """What a reader of the page sees."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(["mandoc", "-Tutf8", "-Owidth=500"], input=page, capture_output=True, text=True, check=True)
    return words(re.sub(r".\x08", "", done.stdout))


@pytest.mark.parametrize(
    "formatter",
    [
        ["mandoc", "-Tlint", "-Wwarning"],
        ["groff", "-ww", "-man", "-Tutf8", "-z"],
        ["man", "--warnings", "-l", "-Tutf8", "-"],
    ],
    ids=lambda command: command[0],
)
def test_formatters_have_no_complaint(page, formatter):
    if shutil.which(formatter[0]) is None:
        pytest.skip(f"{formatter[0]} is not installed")
    done = subprocess.run(formatter, input=page, capture_output=True, text=True)
    complaints = done.stderr + (done.stdout if formatter[0] == "mandoc" else "")
    assert (done.returncode, complaints) == (0, "")


def options_of(name):
    context = click.Context(livepatch, info_name="livepatch", **livepatch.context_settings)
    command = livepatch.get_command(context, name)
    inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
    for option in command.get_params(inner):
        if isinstance(option, click.Option) and (record := option.get_help_record(inner)):
            yield record


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_there_in_the_words_of_help(name, shown, lp):
    section = shown.partition(" COMMANDS ")[2]
    start = section.index(f"livepatch {name} [OPTIONS]")
    help_ = words(lp(name, "--help").out)
    for option, meaning in options_of(name):
        assert words(option) in section[start:]
        assert words(meaning) in section[start:]
        assert words(option) in help_
    assert len(list(options_of(name))) >= 1


def test_every_paragraph_of_every_help_is_there(shown):
    markdown = words(manual.markdown())
    for page_ in manual.pages():
        for _, text in page_.description:
            assert words(text) in shown
            if page_.name != "livepatch":
                assert words(text) in markdown


def test_text_is_not_taken_for_requests():
    assert manual._text(".TH is no request here, nor 'so") == r"\&.TH is no request here, nor \(aqso"
    assert manual._text(r"a\nb `--x` -") == r"a\enb \fB\-\-x\fR \-"
    assert manual._text("`.x`").startswith(r"\fB")


@pytest.mark.parametrize("formatter", [["mandoc", "-Tutf8"], ["groff", "-Tutf8"]], ids=lambda command: command[0])
def test_what_a_shell_would_have_to_understand_is_not_embellished(formatter):
    """Not by a formatter either that takes ` for a quotation mark, as groff does where nobody has told it otherwise."""
    if shutil.which(formatter[0]) is None:
        pytest.skip(f"{formatter[0]} is not installed")
    said = r"""~/.x ^a `b` 'c' "d" \\f"""
    assert manual._escaped("~^`") == r"\(ti\(ha\(ga"
    page = ".TH A 1\n" * (formatter[0] == "mandoc") + manual._escaped(said) + "\n"
    done = subprocess.run(formatter, input=page, capture_output=True, text=True, check=True)
    assert said in done.stdout


def test_the_command_prints_it(lp, page):
    assert lp("man").out == page


def test_the_date_can_be_said(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert manual.roff().startswith('.TH LIVEPATCH 1 "1970-01-02" ')


def test_a_wheel_has_it_where_man_looks_for_it(tmp_path, monkeypatch):
    """Also one that is built from the source distribution; and it is the page of that source, whatever is installed."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        source.extractall(tmp_path, filter="data")
    source = next(path for path in tmp_path.iterdir() if path.is_dir())
    app = source / "src" / "livepatch" / "cli" / "app.py"
    app.write_text(app.read_text().replace("A patch takes effect", "A change takes effect"))
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert "_livepatch_command.py" in wheel.namelist()  # where the command begins
        found = wheel.read(f"livepatch-{__version__}.data/data/share/man/man1/livepatch.1").decode()
    assert "A change takes effect" in found
    assert found == manual.roff().replace("A patch takes effect", "A change takes effect")
