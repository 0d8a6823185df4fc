"""What errors quote of a guest's console."""

from __future__ import annotations

from fastpath.vm.console import last_words


def test_what_the_kernel_says_of_a_restart_is_not_why_it_came(tmp_path):
    console = tmp_path / "console"
    console.write_text(
        "init: alive\ninit: why\n[    3.617160] reboot: Restarting system\n"
    )
    assert "it said last: 'init: why'" in last_words(console)
