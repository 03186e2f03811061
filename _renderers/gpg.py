"""
Decrypts the values of a pillar file that begins with ``#!yaml|gpg``.

It takes the place of Salt's own renderer of this name and reads the same files. What can't be
decrypted is an error that names the missing key; Salt's own writes the ciphertext into the log, or
hands it on as if it were the secret.
"""

import functools
import re
import subprocess

from salt.exceptions import SaltRenderError

_MESSAGE = re.compile(r"-----BEGIN PGP MESSAGE-----.*?-----END PGP MESSAGE-----", re.DOTALL)


def render(data, saltenv="base", sls="", **kwargs):
    """
    Decrypt all encrypted texts in a structure.

    data
        What the renderer before this one made of the file.
    saltenv
        Not used: Salt passes it to every renderer.
    sls
        The file's name, for the error.

    Returns the structure with the secrets in it. Raises ``SaltRenderError`` with the ids of the
    keys of which one is needed.
    """
    if hasattr(data, "read"):
        data = data.read()
    if isinstance(data, dict):
        return {key: render(value, saltenv, sls) for key, value in data.items()}
    if isinstance(data, list):
        return [render(value, saltenv, sls) for value in data]
    if not isinstance(data, str) or not _MESSAGE.search(data):
        return data
    decrypted = _MESSAGE.sub(lambda found: _decrypted(_keys(), found[0], sls), data)
    return decrypted.rstrip("\n")


def _keys():
    """The folder that holds the keys."""
    return __opts__.get("gpg_keydir") or "/etc/salt/gpgkeys"


@functools.lru_cache(maxsize=1000)
def _decrypted(folder, message, sls):
    """The text of a message. Kept in memory: each host's pillar needs the same ones again."""
    gpg = ["gpg", "--homedir", folder, "--batch", "--no-tty", "--quiet"]
    try:
        done = subprocess.run([*gpg, "--decrypt"], input=message.encode(), capture_output=True)
        if done.returncode == 0:
            return done.stdout.decode()
        packets = subprocess.run(
            [*gpg, "--list-only", "--list-packets"], input=message.encode(), capture_output=True
        )
    except FileNotFoundError:
        raise SaltRenderError(f"{sls} holds encrypted values, and gpg isn't installed.") from None
    ids = re.findall(r":pubkey enc packet:.*?keyid ([0-9A-F]+)", packets.stdout.decode())
    raise SaltRenderError(
        f"A value of {sls} is encrypted for {' and '.join(ids) or 'no key that gpg can read'}, and "
        f"none of these keys is in {folder}. Import one there (docs/secrets.md), or have whoever "
        "holds one add this master's key and run secrets.rotate."
    )
