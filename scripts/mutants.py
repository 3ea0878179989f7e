"""Plants every error that cargo-mutants names into one copy of the code, each asleep until its number is in the environment; then wakes one at a time.

A build for each error takes minutes; this needs one build for all of them. `scripts/mutants` calls it.

Usage: mutants.py TREE OUTPUT SHARD TEST... < LIST
TREE is the copy, LIST what `cargo mutants --list --json` says there, OUTPUT the table that is written, SHARD as 0/4 (0/1 is all), TEST an argument of
`cargo test` that names a test binary: `--lib`, `--test=log`; more after a comma goes to that binary (`--lib,proof::`).
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import tree_sitter
import tree_sitter_rust

PACKAGE = "immich-backup-core"
PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))
# Nothing in a constant can ask which error is awake.
CONSTANT = {"const_item", "static_item", "enum_variant", "array_type", "const_block"}
ASLEEP = """
/// Which planted error is awake, by the environment.
#[allow(missing_docs)]
pub mod planted {
    use std::sync::atomic::{AtomicBool, Ordering};
    static AWAKE: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| std::env::var("PLANTED").ok().and_then(|text| text.parse().ok()).unwrap_or(0));
    static SEEN: [AtomicBool; 10_000] = [const { AtomicBool::new(false) }; 10_000];
    pub fn is(number: usize) -> bool {
        if *AWAKE == 0 && !SEEN[number].swap(true, Ordering::Relaxed) && let Some(path) = std::env::var_os("PLANTED_SEEN") {
            use std::io::Write as _;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(format!("{number}\\n").as_bytes()).unwrap();
        }
        *AWAKE == number
    }
}
"""


def awake(number):
    return f"crate::planted::is({number})"


def offset(lines, place):
    """The byte at a line and column of cargo-mutants (both from 1, columns in characters)."""
    before = sum(len(line) for line in lines[: place["line"] - 1])
    return before + len(lines[place["line"] - 1].decode()[: place["column"] - 1].encode())


class Source:
    """One file, and the errors that are planted in it."""

    def __init__(self, path):
        self.path = path
        self.text = path.read_bytes()
        self.lines = self.text.splitlines(keepends=True)
        self.root = PARSER.parse(self.text).root_node
        self.wraps = {}
        self.inserts = collections.defaultdict(str)

    def plant(self, number, mutant):
        """Whether the error could be planted."""
        start, end = (offset(self.lines, mutant["span"][side]) for side in ("start", "end"))
        node = self.root.descendant_for_byte_range(start, end)
        if node is None or self.is_constant(node):
            return False
        genre, new = mutant["genre"], mutant["replacement"]
        if genre == "FnValue":
            self.inserts[start] += f" if {awake(number)} {{ return {new}; }} "
            return True
        if genre == "MatchArm":
            while node and node.type != "match_arm":
                node = node.parent
            pattern = node and node.child_by_field_name("pattern")
            if not pattern:
                return False
            guard = pattern.child_by_field_name("condition")
            if guard is None:
                self.inserts[pattern.end_byte] += f" if !{awake(number)} "
            elif guard.type in ("let_condition", "let_chain"):
                return False
            else:
                self.wrap(guard, "guard", number, "false")
            return True
        if genre in ("MatchArmGuard", "MatchArmGuardExpr"):
            return node.type not in ("let_condition", "let_chain") and self.wrap(node, "guard", number, new)
        if genre == "BinaryOperator":
            node = node if node.type in ("binary_expression", "compound_assignment_expr") else node.parent
            if node.type not in ("binary_expression", "compound_assignment_expr"):
                return False
            return self.wrap(node, "binary", number, new)
        if genre == "UnaryOperator":
            node = node if node.type == "unary_expression" else node.parent
            return node.type == "unary_expression" and self.wrap(node, "unary", number, new)
        if genre in ("StructField", "StructFieldInit"):
            while node and node.type not in ("field_initializer", "shorthand_field_initializer"):
                node = node.parent
            base = node and next((child for child in node.parent.children if child.type == "base_field_initializer"), None)
            if not base or node.type != "field_initializer":
                return False
            base = base.text.decode().removeprefix("..").strip()
            name = node.child_by_field_name("field").text.decode()
            return self.wrap(node.child_by_field_name("value"), "guard", number, f"{base}.{name}")
        return False

    def is_constant(self, node):
        while node:
            if node.type in CONSTANT:
                return True
            if node.type == "function_item":
                return any(child.type == "function_modifiers" and b"const" in child.text for child in node.children)
            node = node.parent
        return False

    def wrap(self, node, kind, number, new):
        # Of two around the same text, a guard is the outer one.
        key = (node.start_byte, -node.end_byte, kind != "guard")
        self.wraps.setdefault(key, (kind, node, []))[2].append((number, new))
        return True

    def render(self, start, end, outer=None):
        """The text between two bytes with all that is planted there, but for what begins with the text that is being wrapped: that stays before it."""
        parts, at = [], start
        edits = [key for key in self.wraps if start <= key[0] and -key[1] <= end and (outer is None or key > outer)]
        edits += [(place, -len(self.text) - 1, None) for place in self.inserts if (outer is None and place == start) or start < place < end]
        for key in sorted(edits, key=lambda key: (key[0], key[1], bool(key[2]))):
            if key[0] < at:
                continue
            parts.append(self.text[at : key[0]].decode())
            if key[2] is None:
                parts.append(self.inserts[key[0]])
                at = key[0]
            else:
                parts.append(self.wrapped(key))
                at = -key[1]
        parts.append(self.text[at:end].decode())
        return "".join(parts)

    def wrapped(self, key):
        kind, node, planted = self.wraps[key]
        if kind == "binary":
            left, right = (node.child_by_field_name(side) for side in ("left", "right"))
            before, after = (self.render(side.start_byte, side.end_byte, key) for side in (left, right))
            operator = node.child_by_field_name("operator").text.decode()
            if operator in ("&&", "||") and len(planted) == 1:
                # Each side once: texts would double with each operator of a chain.
                turned = "" if operator == "&&" else "!"
                return f"({{ let m = {turned}{awake(planted[0][0])}; if ({before}) == m {{ m }} else {{ {after} }} }})"
            choices = [(number, f"{before} {new} {after}") for number, new in planted]
            own = f"{before} {operator} {after}"
        elif kind == "unary":
            inner = node.children[-1]
            text = self.render(inner.start_byte, inner.end_byte, key)
            choices = [(number, f"{new}{text}") for number, new in planted]
            own = f"{node.children[0].text.decode()}{text}"
        else:
            choices, own = planted, self.render(key[0], -key[1], key)
        return "(" + "".join(f"if {awake(number)} {{ {text} }} else " for number, text in choices) + f"{{ {own} }})"

    def write(self):
        self.path.write_text(self.render(0, len(self.text)))


def build(tree, tests):
    """Builds the tests; what does not build, or the binaries."""
    call = ["cargo", "test", "--locked", "--no-run", "--message-format=json", "--package", PACKAGE, "--config", f"profile.dev.package.{PACKAGE}.debug=0"]
    done = subprocess.run(call + sorted({test.split(",")[0] for test in tests}), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tree)
    errors, binaries = [], []
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-message" and message["message"]["level"] == "error":
            spans = [span for span in message["message"]["spans"] if span["is_primary"]]
            errors += [(message["message"]["message"], span["file_name"], span["byte_start"]) for span in spans]
        if message["reason"] == "compiler-artifact" and message["executable"] and message["profile"]["test"] and message["target"]["src_path"].startswith(str(tree / "core")):
            binaries.append((message["target"]["name"], message["target"]["kind"], message["executable"]))
    if done.returncode and not errors:
        sys.exit("the tests do not build, and no planted error is why")
    found = []
    for test in tests:
        name, *more = test.split(",")
        for target, kind, executable in binaries:
            if (name == "--lib" and kind == ["lib"]) or name == f"--test={target}":
                found.append((test, [executable, *more]))
    return errors, found


def run(tree, call, timeout, environment, whole=False):
    """How a test binary ended, what it said, and after how many seconds. One test that fails is enough, unless the `whole` of it is wanted."""
    began = time.monotonic()
    child = subprocess.Popen(call, cwd=tree / "core", env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    hung = threading.Event()

    def stop():
        # With what it started: the session is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, lambda: (hung.set(), stop()))
    timer.start()
    said = []
    for line in child.stdout:
        said.append(line)
        if not whole and re.match(r"test \S+ \.\.\. FAILED", line):
            stop()
            break
    code = child.wait()
    timer.cancel()
    ended = "hung" if hung.is_set() else "passed" if code == 0 else "failed"
    return ended, "".join(said), time.monotonic() - began


def main():
    tree, output, shard, tests = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    which, of = (int(number) for number in shard.split("/"))
    mutants = dict(enumerate(json.load(sys.stdin), 1))
    left_out = {}
    originals = {name: (tree / name).read_bytes() for name in sorted({mutant["file"] for mutant in mutants.values()})}
    lib = tree / "core/src/lib.rs"
    lib.write_text(lib.read_text() + ASLEEP)
    while True:
        planted = {}
        for name, text in originals.items():
            (tree / name).write_bytes(text)
            source = Source(tree / name)
            for number, mutant in mutants.items():
                if mutant["file"] == name and number not in left_out and not source.plant(number, mutant):
                    left_out[number] = "cannot be planted beside others"
            source.write()
        errors, binaries = build(tree, tests)
        if not errors:
            break
        before = len(left_out)
        for message, name, at in errors:
            text = (tree / name).read_bytes()[: at + 1].decode(errors="ignore") if name in originals else ""
            numbers = re.findall(r"crate::planted::is\((\d+)\)", text)
            if numbers:
                left_out.setdefault(int(numbers[-1]), f"does not build: {message}")
        print(f"{len(left_out) - before} do not build", flush=True)
        if len(left_out) == before:
            sys.exit(f"does not build: {errors[0]}")
    # What is awake changes nothing where it is never asked.
    seen, limits = {}, {}
    for name, call in binaries:
        trace = output.with_suffix(".seen")
        trace.unlink(missing_ok=True)
        ended, text, took = run(tree, call, 600, {"PLANTED_SEEN": str(trace)}, whole=True)
        if ended != "passed":
            sys.exit(f"{name} fails where nothing is awake:\n{text}")
        seen[name] = {int(line) for line in trace.read_text().split()} if trace.exists() else set()
        limits[name] = took * 5 + 20
        print(f"{name}: {took:.1f} s, meets {len(seen[name])}", flush=True)
    binaries.sort(key=lambda pair: limits[pair[0]])
    counts = collections.Counter()
    began = time.monotonic()
    with output.open("w") as table:
        for number, mutant in mutants.items():
            if number % of != which:
                continue
            verdict, by = "SURVIVED", ""
            if number in left_out:
                verdict, by = "left out", left_out[number]
            elif not any(number in met for met in seen.values()):
                verdict, by = "UNSEEN", "no test of these comes here"
            else:
                for name, call in binaries:
                    if number not in seen[name]:
                        continue
                    ended, text, took = run(tree, call, limits[name], {"PLANTED": str(number)})
                    if ended != "passed":
                        failed = re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)
                        verdict, by = ("caught" if ended == "failed" else "hung"), f"{name}: {' '.join(failed[:3])}"
                        break
            counts[verdict] += 1
            line = f"{verdict}\t{number}\t{mutant['name']}\t{by}"
            print(line, file=table, flush=True)
            if verdict in ("SURVIVED", "UNSEEN"):
                print(line, flush=True)
    print(f"{output.stem}: {sum(counts.values())} of {len(mutants)} in {time.monotonic() - began:.0f} s:", dict(counts), flush=True)


main()
