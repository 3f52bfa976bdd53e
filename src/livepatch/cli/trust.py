"""Commands about who vouches for an archive: sign it, and see who has."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import click

from livepatch.archive import format, policy, seal
from livepatch.core.model import LivepatchError

from . import candidates
from .common import DONE, json_option, output
from .files import replace_file

_File = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("sign")
@click.argument("file", type=_File, shell_complete=candidates.archives)
@click.option(
    "--key",
    required=True,
    type=_File,
    metavar="KEY",
    help="An OpenSSH private key; or a public key, whose private one ssh-agent or a security key has.",
)
@json_option
def sign_command(file: Path, key: Path) -> int:
    """Sign a patch archive with an OpenSSH key.

    \b
      livepatch sign fix.livepatch --key ~/.ssh/id_ed25519

    The signature goes into the archive, in place of an earlier one, and covers everything else in it. ssh-keygen makes
    it, and asks for the passphrase if there is one.
    """
    data = file.read_bytes()
    command = ["ssh-keygen", "-Y", "sign", "-n", seal.NAMESPACE, "-f", str(key)]
    try:
        made = subprocess.run(command, input=seal.text_of(data), capture_output=True)
    except FileNotFoundError:
        raise LivepatchError(errno.ENOPKG, "ssh-keygen is not there; install OpenSSH's client.") from None
    if made.returncode or not made.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        told = [line for line in made.stderr.decode(errors="replace").splitlines() if not line.startswith("Signing")]
        raise LivepatchError(errno.ENOKEY, f"{file} was not signed: {(told or ['ssh-keygen failed'])[0].rstrip('.')}.")
    replace_file(file, seal.with_signature(data, made.stdout))
    name = format.read(data).manifest.name
    output.say(f"'{name}' in {file} is signed.")
    output.result({"file": str(file), "name": name, "signed": True})
    return DONE


@click.command("verify")
@click.argument("file", type=_File, shell_complete=candidates.archives)
@click.option(
    "--allowed-signers",
    type=_File,
    metavar="FILE",
    help="Who may sign, in the form of ssh-keygen(1).  [default: as /etc/livepatch and the user's files say]",
)
@json_option
def verify_command(file: Path, allowed_signers: Path | None) -> int:
    """Say who has signed a patch archive; the exit status is 1 if no allowed signer has, or it was altered since.

    \b
    Allowed signers are in  /etc/livepatch/allowed_signers, and in
                            ~/.config/livepatch/allowed_signers  if config.toml beside the first is not strict
    """
    data = file.read_bytes()
    files = policy.policy().signers if allowed_signers is None else (os.path.abspath(allowed_signers),)
    signer = policy.signer(data, files)
    name = format.read(data).manifest.name
    output.say(f"'{name}' in {file} is signed by {signer.name}, key {signer.key}.")
    output.result({"file": str(file), "name": name, "signer": signer.name, "key": signer.key})
    return DONE
