"""Text from outside, so that it forges no line and steers no terminal. Pure."""


def inert(text: str, keep: str = "") -> str:
    r"""Return text with control, format, bidirectional characters and halves of pairs spelled out.

    As `\x1b` or `\ud800`: what comes out can be printed, and encoded.

    Args:
        text: whatever somebody has sent.
        keep: characters that stay as they are, such as line breaks where lines are told apart.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )
