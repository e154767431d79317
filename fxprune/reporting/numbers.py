"""Numbers for people to read."""

from __future__ import annotations

from fxprune.reporting.facts import Change

__all__ = ["TIMES", "arrow", "bytes_of", "count", "milliseconds", "percent", "short", "speedup", "threads"]

# No line breaks between a number and its unit.
_SPACE = "\N{NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"


def short(value: float) -> str:
    """Three digits and a unit.

    >>> short(1819065856), short(43), short(39_000)
    ('1.82\\xa0G', '43', '39.0\\xa0k')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three(value / size)}{_SPACE}{unit}"
    return f"{value:.0f}"


def bytes_of(value: int) -> str:
    """Bytes, in binary units.

    >>> bytes_of(27_355_700)
    '26.1 MiB'
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value} B"


def percent(share: float) -> str:
    """A fraction in percent.

    >>> percent(0.4998), percent(1.0), percent(0.0012)
    ('50.0 %', '100 %', '0.12 %')
    """
    value = share * 100
    return f"{value:.0f} %" if value == 100 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def count(value: int) -> str:
    """All digits, in thousands."""
    return f"{value:,}"


def arrow(change: Change, form: str = "short") -> str:
    """Before and after; one number where nothing changed.

    >>> arrow(Change(64, 31)), arrow(Change(None, 31)), arrow(Change(64, 64))
    ('64 → 31', '? → 31', '64')
    """
    write = short if form == "short" else count
    after = write(change.after)
    if change.before == change.after:
        return after
    return f"{'?' if change.before is None else write(change.before)} → {after}"


def milliseconds(seconds: float) -> str:
    """Three digits.

    >>> milliseconds(1.0171), milliseconds(0.00532)
    ('1,017 ms', '5.32 ms')
    """
    value = seconds * 1e3
    return f"{_three(value)} ms" if value >= 1 else f"{value:.2g} ms"


def speedup(share: float) -> str:
    """How many times faster something is that takes a fraction of the time.

    >>> speedup(0.5) == f"2.00{TIMES}"
    True
    """
    return f"{1 / share:.2f}{TIMES}"


def threads(number: int) -> str:
    """A number of threads.

    >>> threads(1), threads(8)
    ('1 thread', '8 threads')
    """
    return f"{number} thread{'s' if number != 1 else ''}"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
