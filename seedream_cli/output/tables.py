"""Tables for people: in columns and colours on a terminal, as plain aligned lines in a pipe."""

from __future__ import annotations


def fold_words(line: str, columns: int) -> list[str]:
    """A line in so many columns, folded between words alone; what follows is set in a little more than it is."""
    from rich.cells import cell_len

    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = [line[: len(indent) - 2]]
    for word in line.split(" ")[len(indent) - 2 :]:
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else lines[-1] + word
        # A line that begins with two colons is a command to some CI services.
        if cell_len(longer) <= columns or not lines[-1].strip() or word.startswith("::"):
            lines[-1] = longer
        else:
            lines.append(indent + word)
    return lines
