"""The lint for layers finds what it is there for, and knows its own table."""

from __future__ import annotations

import pytest

from tools.layers import differences

TABLE = {
    "native": [
        {"name": "low", "parts": ["low", "mid.h"]},
        {"name": "high", "parts": ["high"]},
    ],
    "guest": [
        {"name": "lib", "parts": ["lib"]},
        {"name": "agent", "parts": ["agent"]},
        {"name": "init", "parts": ["init"]},
    ],
    "python": [
        {"name": "seam", "parts": ["vhost_user.__init__", "vhost_user.low"]},
        {"name": "commands", "parts": ["fastpath.__init__", "fastpath.cli"]},
    ],
    "lines": {
        "native": 4,
        "any": 6,
        "folders": ["vhost_user", "fastpath"],
        "generated": ["vhost_user/_vu.c"],
    },
    "known": {"faults": []},
}
SOUND = {
    "vhost_user/__init__.py": "",
    "vhost_user/_vu.c": "int generated;\n" * 100,
    "vhost_user/low.py": "",
    "fastpath/__init__.py": "",
    "fastpath/cli.py": "from vhost_user import low\n",
    "vhost_user/native/mid.h": "void low(void);\n",
    "vhost_user/native/low/low.c": '#include "mid.h"\nvoid low(void) {}\n',
    "vhost_user/native/high/high.c": (
        '#include "mid.h"\nvoid high(void) { low(); }\n'  # downwards
    ),
}
FAULTS = {
    "an include that runs up": (
        {
            "high/high.h": "",
            "low/more.c": '#include "high/high.h"\n',
        },
        ["arrow up: low/more.c -> high/high.h (low -> high)"],
    ),
    "a call that runs up, declared by itself": (
        {"low/more.c": "void high(void);\nvoid more(void) { high(); }\n"},
        ["arrow up: low/more.c -> high/high.c (low -> high)"],
    ),
    "a table that is used upwards": (
        {
            "high/table.c": "const int table[1] = {1};\n",
            "low/more.c": "extern const int table[1];\nint more(void) "
            "{ return table[0]; }\n",
        },
        ["arrow up: low/more.c -> high/table.c (low -> high)"],
    ),
    "a circle in one layer": (
        {
            "low/a.c": "void b(void);\nvoid a(void) { b(); }\n",
            "low/b.c": "void c(void);\nvoid b(void) { c(); }\n",
            "low/c.c": "void a(void);\nvoid c(void) { a(); }\n",
            "low/d.c": "void a(void);\nvoid d(void) { a(); }\n",  # not of it
        },
        ["circle: low/a.c low/b.c low/c.c"],
    ),
    "an include that is not by path from native/": (
        {"low/low.h": "", "low/more.c": '#include "low.h"\n'},
        ["not there: low.h, which low/more.c needs"],
    ),
    "a file in no layer": (
        {"lower.c": ""},
        ["in no layer: lower.c"],
    ),
    "a C file that is too long": (
        {"low/more.c": "\n" * 5},
        ["more than 4 lines: vhost_user/native/low/more.c"],
    ),
    "a Python file that is too long": (
        {"build.py": "\n" * 7},
        [
            "in no layer: vhost_user.native.build",
            "more than 6 lines: vhost_user/native/build.py",
        ],
    ),
    "a call that runs up in the guest": (
        {
            "../../guest/agent/main.c": "int main(void) { return 0; }\n"
            "void up(void) {}\n",
            "../../guest/lib/low.c": "void up(void);\nvoid low(void) { up(); }\n",
        },
        ["arrow up: lib/low.c -> agent/main.c (lib -> agent)"],
    ),
    "an import that runs up": (
        {"../low.py": "from fastpath import cli\n"},
        [
            "arrow up: vhost_user.low -> fastpath.cli (seam -> commands)",
            "circle: fastpath.cli vhost_user.low",
        ],
    ),
    "an import for types, and one of a name": (
        {
            "../low.py": "if TYPE_CHECKING:\n    from fastpath.cli import main\n",
            "../../fastpath/cli.py": "",
        },
        ["arrow up: vhost_user.low -> fastpath.cli (seam -> commands)"],
    ),
    "an import inside a function": (
        {
            "../low.py": "def f():\n    import fastpath.cli\n",
            "../../fastpath/cli.py": "",
        },
        ["arrow up: vhost_user.low -> fastpath.cli (seam -> commands)"],
    ),
    "a module in no layer": (
        {"../lower.py": ""},
        ["in no layer: vhost_user.lower"],
    ),
}


@pytest.fixture
def tree(tmp_path):
    def write(files, folder=tmp_path):
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write(SOUND)
    return write


def test_a_sound_tree_has_no_fault(tree):
    assert differences(tree({}), TABLE) == []


@pytest.mark.parametrize(("files", "found"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_found(tree, tmp_path, files, found):
    root = tree(files, tmp_path / "vhost_user" / "native")
    assert differences(root, TABLE) == found


def test_programs_of_the_guest_may_use_the_same_names(tree):
    """Each has its own say(), and what both need is the one of their own."""
    both = {
        f"guest/{name}/{file}.c": text
        for name in ("agent", "init")
        for file, text in (
            ("say", "void say(void) {}\n"),
            ("main", "void say(void);\nint main(void) { say(); return 0; }\n"),
        )
    }
    assert differences(tree(both), TABLE) == []


def test_a_known_fault_passes_until_it_is_fixed(tree, tmp_path):
    fault = "more than 4 lines: vhost_user/native/low/low.c"
    table = TABLE | {"known": {"faults": [fault]}}
    root = tree({"vhost_user/native/low/low.c": "void low(void) {}\n" + "\n" * 4})
    assert differences(root, table) == []
    assert differences(tree(SOUND), table) == [
        f"fixed, remove it from tools/layers.toml: {fault}"
    ]


def test_names_that_only_begin_alike_are_not_below(tree):
    root = tree({"vhost_user/lowest.py": ""})
    assert differences(root, TABLE) == ["in no layer: vhost_user.lowest"]
