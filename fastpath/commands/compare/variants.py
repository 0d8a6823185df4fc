"""`--variant NAME[:KEY=VALUE,...]`: set-ups of one path that are compared by turns.

    kernel=FILE             of the guest, all its drivers built in
    image=NAME              of the guest, as `fastpath image list` has it
    guest.cmdline=WORDS     more kernel parameters, as tsi=agent
    qemu=PROGRAM            the VMM
    ztunnel=PROGRAM         another checkout's `fastpath`: its ztunnel, vsock back-end
                            and TSI are one process
    poll-us=N               how long the engine spins before it sleeps
    backend=PROGRAM         of the vsock device, for raw AF_VSOCK: rust-vmm's
                            vhost-device-vsock, or another build of it

A comma in a value is written twice, as QEMU has it. What a variant doesn't name is as
it is without variants.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare.paths import RAW
from fastpath.errors import FastpathError
from fastpath.image.programs import VHOST_DEVICE_VSOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_PARTS: Final = re.compile(r"(?<!,),(?!,)")
MAX_POLL_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A set-up; None: as it is without variants."""

    name: str = ""
    """Empty: there are no variants, and this is what there is."""
    spec: str = ""
    kernel: Path | None = None
    image: str | None = None
    cmdline: str = ""
    qemu: str | None = None
    ztunnel: str | None = None
    poll_us: int | None = None
    backend: str | None = None


PLAIN: Final = Variant()
"""What is measured without variants."""


def parse_all(values: Sequence[str]) -> tuple[Variant, ...]:
    """Read the options of a command line.

    Raises:
        FastpathError: one makes no sense, there is one alone, or two have a name.
    """
    found = tuple(parse(value) for value in values)
    names = [each.name for each in found]
    if len(found) == 1:
        raise FastpathError(
            f"--variant {values[0]}",
            "one variant alone has nothing to be compared with",
            "name the other one before it: --variant base",
        )
    for name in names:
        if names.count(name) > 1:
            raise FastpathError(f"--variant {name}", "two variants have this name")
    return found


def parse(value: str) -> Variant:
    """Read one.

    Raises:
        FastpathError: it makes no sense, or names a file that is not there.
    """
    what = f"--variant {value}"
    name, _, spec = value.partition(":")
    if not _NAME.fullmatch(name):
        why = f"{name!r} is no name: letters, digits, '.', '_' and '-', at most 32"
        raise FastpathError(what, why)
    own = Variant(name=name, spec=spec)
    seen = set()
    for part in _PARTS.split(spec) if spec else ():
        key, equals, text = part.replace(",,", ",").partition("=")
        if key not in _KEYS or not equals or not text:
            raise FastpathError(what, *_why_not(key, part))
        if key in seen:
            raise FastpathError(what, f"{key} is there twice")
        seen.add(key)
        own = _KEYS[key](own, text, what)
    return own


def _why_not(key: str, part: str) -> tuple[str, str | None]:
    if key in _KEYS:
        return f"{part!r} has no value", f"{key}=VALUE"
    return f"no key {key!r}; there are {', '.join(_KEYS)}", None


def _kernel(own: Variant, text: str, what: str) -> Variant:
    file = Path(text)
    try:
        file.open("rb").close()
    except OSError as exc:
        raise FastpathError(what, f"{file}: {exc.strerror}") from exc
    return replace(own, kernel=file)


def _image(own: Variant, text: str, what: str) -> Variant:
    del what  # building it says what is wrong with it
    return replace(own, image=text)


def _cmdline(own: Variant, text: str, what: str) -> Variant:
    if not text.isprintable():
        raise FastpathError(what, "guest.cmdline has characters that don't print")
    return replace(own, cmdline=text)


def _qemu(own: Variant, text: str, what: str) -> Variant:
    return replace(own, qemu=_program(text, what))


def _ztunnel(own: Variant, text: str, what: str) -> Variant:
    return replace(own, ztunnel=_program(text, what))


def _program(text: str, what: str) -> str:
    if (found := shutil.which(text)) is None:
        raise FastpathError(what, f"{text}: there is no such program")
    return found


def _poll_us(own: Variant, text: str, what: str) -> Variant:
    if not re.fullmatch("[0-9]{1,7}", text) or int(text) > MAX_POLL_US:
        raise FastpathError(what, f"poll-us is {text!r}, not 0 to {MAX_POLL_US}")
    return replace(own, poll_us=int(text))


def _backend(own: Variant, text: str, what: str) -> Variant:
    own_program = text == VHOST_DEVICE_VSOCK.name  # is downloaded
    return replace(own, backend=text if own_program else _program(text, what))


def check_backends(variants: Sequence[Variant], paths: Sequence[str]) -> None:
    """Check that back-ends are given only where one can be another's.

    Raises:
        FastpathError: TSI is to go by one, or it is to poll as ztunnel's engine does.
    """
    for each in variants:
        for key, value in (("poll-us", each.poll_us), ("ztunnel", each.ztunnel)):
            if each.backend and value is not None:
                raise FastpathError(
                    f"--variant {each.name}:{each.spec}",
                    f"{key} is ztunnel's, and nothing goes by that with another "
                    "back-end",
                    f"leave {key} out",
                )
        if each.backend and any(path != RAW for path in paths):
            raise FastpathError(
                f"--variant {each.name}:{each.spec}",
                f"only the path {RAW!r} goes by any back-end: what the others go by is "
                "ztunnel's own, which also speaks TSI",
                f"--paths {RAW}; or ztunnel=PROGRAM, the fastpath of another checkout",
            )


_KEYS: Final[dict[str, Callable[[Variant, str, str], Variant]]] = {
    "kernel": _kernel,
    "image": _image,
    "guest.cmdline": _cmdline,
    "qemu": _qemu,
    "ztunnel": _ztunnel,
    "poll-us": _poll_us,
    "backend": _backend,
}
