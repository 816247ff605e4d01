"""Make the secrets of a self-hosted Langfuse, once.

The official compose file starts with passwords that anyone can read on the internet, and
a key that is typed by hand into two places will differ in one of them. Make every secret
here, in one file that the server reads, and copy the keys from there to where you trace.

Run it:

    python -m recipes.self_host.make_secrets ../langfuse/.env

It needs nothing but Python, so it also runs as a file on a server without this folder.

Try next: run it twice. The second run refuses, because new passwords would lock the
server out of the databases that were made with the old ones.
"""

import argparse
import os
import secrets
import shlex
import sys
import uuid
from pathlib import Path

BASE_URL = "http://localhost:3000"  # edit it in the file if others reach it by another name
EMAIL = "admin@example.com"  # the first user; edit it in the file, before the first start
CLIENT_LINES = ("LANGFUSE_BASE_URL", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")


# %% 1. Make each secret in the form that its reader wants
#
# Hexadecimal digits mean nothing to a shell, a URL, YAML or Compose, where a `$` or an
# `@` in a password would. The three secrets of Langfuse itself have 256 bits, as its
# documentation asks; the keys look like those that its page makes.


def make_settings() -> dict[str, str]:
    """Return every variable that the override refers to, with a fresh random value.

    In Langfuse: the public key is shown in the project's settings, under API Keys.
    """
    return {
        "LANGFUSE_BASE_URL": BASE_URL,
        "LANGFUSE_PUBLIC_KEY": f"pk-lf-{uuid.uuid4()}",
        "LANGFUSE_SECRET_KEY": f"sk-lf-{uuid.uuid4()}",
        "LANGFUSE_INIT_USER_EMAIL": EMAIL,
        "LANGFUSE_INIT_USER_PASSWORD": secrets.token_hex(16),
        "SALT": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "NEXTAUTH_SECRET": secrets.token_hex(32),
        "POSTGRES_PASSWORD": secrets.token_hex(16),
        "CLICKHOUSE_PASSWORD": secrets.token_hex(16),
        "REDIS_AUTH": secrets.token_hex(16),
        "MINIO_ROOT_PASSWORD": secrets.token_hex(16),
    }


# %% 2. Write them where only you can read them
#
# The file is created and closed to others in one step, so there is no moment at which
# another user could open it. It is never overwritten: it may be the only copy of what
# the databases were made with.


def write_once(path: Path, settings: dict[str, str]) -> None:
    """Write the settings to a new file of mode 0600.

    Raises FileExistsError where there is one, and OSError where it cannot be written.
    """
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(["# Secrets of a self-hosted Langfuse: keep a copy.\n", *lines])


# %% 3. Say how the keys get to where you trace
#
# Printed secrets stay in the terminal's memory and in recordings, typed ones in the
# shell's history. One command copies the lines and shows none; it is left to you, since
# your `.env` may hold keys that you still need.


def copy_command(path: Path) -> str:
    """Return the shell command that appends the client's three lines to `.env`.

    `echo` begins a new line, should the last one in `.env` not be ended. A later line wins
    over an earlier one of the same name.
    """
    names = "|".join(CLIENT_LINES)
    return f"{{ echo; grep -E '^({names})=' {shlex.quote(str(path))}; }} >> .env"


def main() -> None:
    """One new file, and one command to go on with."""
    parser = argparse.ArgumentParser(description="Make the secrets of a self-hosted Langfuse.")
    parser.add_argument("path", type=Path, help="the file to write, beside docker-compose.yml")
    path = parser.parse_args().path
    try:
        write_once(path, make_settings())
    except FileExistsError:
        sys.exit(f"{path} exists and was left as it is: a server may run with what is in it.")
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}.")
    sys.stdout.write(
        f"Wrote {path}, readable by you alone. Edit address and e-mail now, if you like.\n"
        "To send traces there, put its address and keys into your .env, unseen:\n\n"
        f"    {copy_command(path)}\n\n"
        f"Then sign in with LANGFUSE_INIT_USER_EMAIL and _PASSWORD, as they stand in {path}.\n"
    )


if __name__ == "__main__":
    main()
