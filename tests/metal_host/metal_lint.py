#!/usr/bin/python3
"""Rejects what Metal's compiler would reject and C++ accepts.

Reads generated host code (msl_to_host.py without --table) whose #line
directives name the sources. Two kinds of rules:

 1. libclang, for what C++ with address-space attributes cannot see: a pointer
    or reference that is declared, returned or cast to without an address space
    (Metal has no default for them), C-style casts to pointers.
 2. Tokens that Metal has no meaning for: double, virtual, exceptions, new and
    delete, std::, goto, thread_local, dynamic_cast, typeid, C-style casts;
    recursion of anything but a constexpr function.
"""
import re
import sys

import clang.cindex as ci

SPACES = {"device", "constant", "threadgroup", "thread"}
FORBIDDEN = {
    "double": "MSL has no double",
    "virtual": "MSL has no virtual functions",
    "throw": "MSL has no exceptions",
    "try": "MSL has no exceptions",
    "catch": "MSL has no exceptions",
    "new": "MSL has no new",
    "delete": "MSL has no delete",
    "goto": "MSL has no goto",
    "thread_local": "MSL has no thread_local",
    "dynamic_cast": "MSL has no dynamic_cast",
    "typeid": "MSL has no typeid",
    "lambda": "MSL 3.1 has no lambdas",
}
K = ci.CursorKind
DECLARATIONS = (K.PARM_DECL, K.VAR_DECL, K.FIELD_DECL)
FUNCTIONS = (K.FUNCTION_DECL, K.FUNCTION_TEMPLATE, K.CXX_METHOD)
CASTS = (
    K.CXX_REINTERPRET_CAST_EXPR,
    K.CXX_STATIC_CAST_EXPR,
    K.CXX_CONST_CAST_EXPR,
)
POINTERS = (
    ci.TypeKind.POINTER,
    ci.TypeKind.LVALUEREFERENCE,
    ci.TypeKind.RVALUEREFERENCE,
    ci.TypeKind.UNEXPOSED,
    ci.TypeKind.CONSTANTARRAY,
    ci.TypeKind.AUTO,
)


class Lint:
    def __init__(self, path, arguments):
        self.path = path
        with open(path) as file:
            self.text = re.sub(
                r"//[^\n]*|/\*.*?\*/",
                lambda m: re.sub(r"[^\n]", " ", m[0]),
                file.read(),
                flags=re.S,
            )
        self.lines = self.presumed_lines()
        self.problems = 0
        self.functions = []  # around the cursor that is visited
        self.unit = ci.Index.create().parse(
            path,
            ["-x", "c++", "-std=c++14", "-Wno-unknown-attributes"] + arguments,
        )

    def presumed_lines(self):
        """(file, line) of each line, after the #line directives."""
        where, result = (self.path, 1), []
        for line in self.text.split("\n"):
            directive = re.match(r'#line (\d+) "(.*)"', line)
            result.append(where)
            where = (
                (directive[2], int(directive[1]))
                if directive
                else (where[0], where[1] + 1)
            )
        return result

    def report(self, line, what):
        file, number = self.lines[line - 1]
        print(f"{file}:{number}: error: {what}")
        self.problems += 1

    def tokens(self, cursor):
        """Spellings, with what stands before the cursor up to a delimiter: an
        address space that is an empty macro is outside of its extent."""
        before = self.text[: cursor.extent.start.offset]
        before = re.split(r"[(),;{}<>]", before)[-1]
        return before.split() + [t.spelling for t in cursor.get_tokens()]

    def check_declaration(self, cursor):
        tokens = self.tokens(cursor)
        name = cursor.spelling
        head = tokens[: tokens.index(name)] if name in tokens else tokens
        if (
            {"*", "&", "&&"} & set(head)
            and cursor.type.kind in POINTERS
            and not SPACES & set(head)
        ):
            self.report(
                cursor.extent.start.line,
                f"{name} is a pointer or reference without an address space",
            )

    def check_function(self, cursor):
        text = re.sub(r"\[ ?\[.*?\] ?\]", " ", " ".join(self.tokens(cursor)))
        tokens = text.split()
        name = cursor.spelling
        head = tokens[: tokens.index(name)] if name in tokens else []
        if {"*", "&"} & set(head) and not SPACES & set(head):
            self.report(
                cursor.extent.start.line,
                f"{name} returns a pointer without an address space",
            )

    def check_cast(self, cursor):
        tokens = [t.spelling for t in cursor.get_tokens()]
        text = " ".join(tokens)
        target = re.search(r"_cast\s*<(.*?)>\s*\(", text)
        if (
            target
            and {"*", "&"} & set(target[1])
            and not SPACES & set(target[1].split())
        ):
            self.report(
                cursor.extent.start.line,
                "cast to a pointer or reference without an address space",
            )

    def check_recursion(self, cursor):
        for name, constexpr in self.functions:
            if cursor.spelling == name and not constexpr:
                self.report(cursor.extent.start.line, f"{name} calls itself")

    def visit(self, parent):
        for cursor in parent.get_children():
            file = cursor.location.file
            if file is None or file.name != self.path:
                if cursor.kind != K.NAMESPACE:
                    continue
            kind = cursor.kind
            is_function = kind in FUNCTIONS
            if kind in DECLARATIONS:
                self.check_declaration(cursor)
            elif is_function:
                self.check_function(cursor)
            elif kind in CASTS:
                self.check_cast(cursor)
            elif kind == K.CSTYLE_CAST_EXPR:
                self.report(cursor.extent.start.line, "C-style cast")
            elif kind == K.LAMBDA_EXPR:
                self.report(cursor.extent.start.line, FORBIDDEN["lambda"])
            elif kind in (K.CALL_EXPR, K.OVERLOADED_DECL_REF, K.DECL_REF_EXPR):
                self.check_recursion(cursor)
            if is_function:
                at = cursor.location.offset
                line = self.text[self.text.rfind("\n", 0, at) : at]
                constexpr = re.search(r"\bconstexpr\b", line) is not None
                self.functions.append((cursor.spelling, constexpr))
            self.visit(cursor)
            if is_function:
                self.functions.pop()

    def check_words(self):
        for number, line in enumerate(self.text.split("\n"), 1):
            if line.startswith("#"):
                continue
            bare = re.sub(r'"[^"]*"', '""', line)
            for word in re.findall(r"\b[a-z_]+\b", bare):
                if word in FORBIDDEN:
                    self.report(number, FORBIDDEN[word])
            if "std::" in bare:
                self.report(number, "MSL has no std")

    def run(self):
        for diagnostic in self.unit.diagnostics:
            if diagnostic.severity >= ci.Diagnostic.Error:
                print(diagnostic)
                self.problems += 1
        self.check_words()
        self.visit(self.unit.cursor)
        return self.problems


if __name__ == "__main__":
    sys.exit(Lint(sys.argv[1], sys.argv[2:]).run() != 0)
