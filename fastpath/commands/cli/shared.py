"""Options that more than one command has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user.options import number, seconds

if TYPE_CHECKING:
    import argparse

    from fastpath.report.difference import Thresholds
    from vhost_user.options import Parser


def vm(options: Parser | argparse._ArgumentGroup) -> None:
    """How microVMs run."""
    options.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="who runs the guest's CPU; auto: KVM where it truly does (auto)",
    )
    options.add_argument(
        "--qemu",
        metavar="PROGRAM",
        default="qemu-system-x86_64",
        help="the VMM (qemu-system-x86_64)",
    )
    options.add_argument(
        "--boot-timeout",
        metavar="S",
        type=seconds,
        help="seconds for the guest's boot (30 under KVM, 180 under TCG)",
    )


def geneve(parser: Parser) -> None:
    """Which Geneve device."""
    parser.add_argument(
        "--geneve",
        choices=("auto", "kernel", "bpf"),
        default="auto",
        help="which Geneve device (auto)",
    )


def thresholds(parser: Parser) -> None:
    """What counts as a difference."""
    parser.add_argument(
        "--alpha",
        metavar="P",
        type=number(0.0001, 0.5),
        default=0.05,
        help="two equal set-ups differ in at most this share of runs (0.05)",
    )
    parser.add_argument(
        "--min-change",
        metavar="PERCENT",
        type=number(0, 1000),
        default=3.0,
        help="a smaller change is no difference (3)",
    )


def thresholds_of(found: argparse.Namespace) -> Thresholds:
    """What those options say."""
    from fastpath.report.difference import Thresholds

    return Thresholds(alpha=found.alpha, least=found.min_change / 100)


def as_json(parser: Parser) -> None:
    """For programs instead of people."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")
