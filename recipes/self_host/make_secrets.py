"""Make the secrets of a self-hosted Langfuse, once.

The official compose file starts with passwords that anyone can read on the internet, and
a key that is typed into two places by hand will differ in one of them. This makes every secret
in one file that the server reads; from there you copy the keys to where you trace.

Run it:

    python -m recipes.self_host.make_secrets ../langfuse/.env

It needs only Python, so you can also copy this one file to a server and run it there.

Try next: run it twice. The second run refuses, because new passwords would lock the
server out of the databases that were created with the old ones.
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


# %% 1. Make each secret in a form that is safe everywhere
#
# A `$` or an `@` in a password means something to a shell, a URL, YAML or Compose. Hexadecimal
# digits do not. Langfuse's own three secrets have 256 bits, as its documentation asks; the
# keys look like those that Langfuse creates.


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
# The file is created with its permissions in one step, so there is no moment at which another
# user could open it. It is never overwritten: it may be the only copy of the passwords of
# your databases.


def write_once(path: Path, settings: dict[str, str]) -> None:
    """Write the settings to a new file of mode 0600.

    Raises FileExistsError if the file exists, and OSError if it cannot be written.
    """
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(["# Secrets of a self-hosted Langfuse: keep a copy.\n", *lines])


# %% 3. Show how to copy the keys to where you trace
#
# Printed secrets stay in the terminal's scrollback and in recordings, typed ones in the shell's
# history. So one command copies the lines without showing them. You run it yourself, because
# your `.env` may contain keys that you still need.


def copy_command(path: Path) -> str:
    """Return the shell command that appends the client's three lines to `.env`.

    `echo` starts a new line, in case `.env` does not end with one. A later line overrides an
    earlier one with the same name.
    """
    names = "|".join(CLIENT_LINES)
    return f"{{ echo; grep -E '^({names})=' {shlex.quote(str(path))}; }} >> .env"


def main() -> None:
    """Write the file, and print the command that copies the keys."""
    parser = argparse.ArgumentParser(description="Make the secrets of a self-hosted Langfuse.")
    parser.add_argument("path", type=Path, help="the file to write, next to docker-compose.yml")
    path = parser.parse_args().path
    try:
        write_once(path, make_settings())
    except FileExistsError:
        sys.exit(f"{path} exists and was not changed: a server may depend on what is in it.")
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}.")
    sys.stdout.write(
        f"Wrote {path}, which only you can read. Edit its address and e-mail now, if you like.\n"
        "To send traces there, copy the address and the keys into your .env without showing them:"
        "\n\n"
        f"    {copy_command(path)}\n\n"
        f"Then sign in with LANGFUSE_INIT_USER_EMAIL and _PASSWORD from {path}.\n"
    )


if __name__ == "__main__":
    main()
