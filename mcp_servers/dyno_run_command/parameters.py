"""What a caller fills in, as environment variables of the command. Pure.

No shell parses a value unless the command line says so: that line is the operator's, and it decides
what becomes of `"$name"`. What is left to guard are the names, since some make a program load code.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)

_REFUSED = re.compile(
    # Shells and the dynamic linker, glibc's lookups, what finds programs and files.
    r"(LD|BASH|MALLOC|GLIBC)_.*|PATH|IFS|ENV|BASHOPTS|SHELLOPTS|SHELL|PS[0-9]|PROMPT_COMMAND"
    r"|CDPATH|FPATH|ZDOTDIR|HOME|PWD|TMPDIR|GCONV_PATH|LOCPATH|NLSPATH|HOSTALIASES|LOCALDOMAIN"
    # Languages and their package managers.
    r"|PYTHON.*|PIP_.*|RUBY.*|GEM_.*|BUNDLE_.*|NODE_.*|(NPM|npm)_.*|PERL.*|PHP.*|LUA_.*|GO[A-Z]+"
    r"|_?JAVA_.*|JDK_.*|CLASSPATH|MAVEN_.*|DOTNET_.*|CORECLR_.*|R_.*|RUST.*|CARGO_.*"
    # What other programs run, or whom they ask.
    r"|GIT_.*|SSH_.*|EDITOR|VISUAL|(MAN)?PAGER|LESS(OPEN|CLOSE|KEY)?|BROWSER|OPENSSL_.*|SSL_.*"
    r"|(HTTPS?|FTP|ALL|NO)_PROXY|(https?|ftp|all|no)_proxy|CURL_.*|PG[A-Z]+"
    # The gateway's and the platform's.
    r"|RENDEZVOUS_.*|DYNO.*|PORT",
    re.ASCII,
)
"""Names that change what a program is, or whom it talks to. The list cannot be complete, so what
the app has already set is refused as well."""


class BadParameterError(ValueError):
    """A parameter cannot be handed on; the message says which one, and why."""


def variables_from(parameters: Mapping[str, Any], taken: Container[str]) -> dict[str, str]:
    """Make environment variables of parameters, each under its own name.

    Strings stay as they are, numbers and booleans are written as in JSON, and so are objects and
    arrays. A null leaves the variable unset, for `${name:-default}`.

    Args:
        parameters: Decoded JSON.
        taken: Names that the environment has already.

    Raises:
        BadParameterError: A name or a value cannot be that of a variable, or the name is refused.
    """
    found = {}
    for name, value in parameters.items():
        if not _NAME.fullmatch(name):
            raise BadParameterError(
                f"{name[:100]!r} is no name of a parameter: letters, digits and _, no digit first,"
                " at most 100"
            )
        if _REFUSED.fullmatch(name) or name in taken:
            raise BadParameterError(
                f"{name!r} cannot be a parameter: it is a variable of the app, or one that programs"
                " obey; use another name"
            )
        if value is not None:
            found[name] = _text(name, value)
    return found


def _text(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        usable = False
    else:
        usable = "\0" not in text
    if not usable:
        raise BadParameterError(
            f"the value of {name!r} holds a character that no environment variable can have"
        )
    return text
