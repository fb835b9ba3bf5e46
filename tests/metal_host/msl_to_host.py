#!/usr/bin/env python3
"""Rewrites Metal source to C++ that shim/metal_stdlib and lockstep.h can run.

Every line stays where it was. Two things change:
 1. `threadgroup T x[..];`, a declaration, becomes a static array that is shown
    to the runtime (a pointer uses the same word, so a macro cannot do it);
 2. `template [[host_name("n")]] [[kernel]] decltype(f<..>) f<..>;` is blanked,
    and a launcher for it is appended, whose arguments are bound from the
    kernel's own attributes: buffer indices to slots, built-ins by name, both
    checked as Metal would check them. A kernel that is no template gets a
    launcher under its own name.
The launchers are offered as `lockstep_kernels_TABLE`, ended by a null entry.
"""
import argparse
import re
import sys

VECTOR_IDS = {
    "thread_position_in_grid": "position_in_grid",
    "threads_per_grid": "threads_per_grid",
    "threadgroup_position_in_grid": "threadgroup_position",
    "threadgroups_per_grid": "threadgroups_per_grid",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "thread_position_in_threadgroup": "position_in_threadgroup",
}
SCALAR_IDS = {
    "thread_index_in_threadgroup": "ids.index_in_threadgroup",
    "simdgroup_index_in_threadgroup": "ids.simdgroup_index",
    "thread_index_in_simdgroup": "ids.simd_lane",
    "simdgroups_per_threadgroup": "ids.num_simdgroups",
    "threads_per_simdgroup": "32u",
}
MAX_BUFFERS = 31


def fail(message):
    sys.exit(f"error: {message}")


def blank(match):
    return re.sub(r"[^\n]", " ", match[0])


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)


def split_arguments(text):
    """Splits at the commas that no bracket encloses."""
    parts, depth, part = [], 0, ""
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += c
    return [p.strip() for p in parts + [part] if p.strip()]


def find_kernels(text):
    """name -> (is a template, parameters) of every kernel function."""
    kernels = {}
    head = re.compile(
        r"(template\s*<[^>]*>\s*)?"
        r"(?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel\b)\s*void\s+(\w+)\s*\("
    )
    for match in head.finditer(text):
        end, depth = match.end(), 1
        while depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        parameters = split_arguments(text[match.end() : end - 1])
        kernels[match[2]] = (match[1] is not None, parameters)
    return kernels


def bind(name, parameters):
    """The launcher's arguments for a kernel's parameters."""
    slots, arguments = {}, []
    for parameter in parameters:
        attributes = re.findall(r"\[\[(.*?)\]\]", parameter, re.S)
        if len(attributes) != 1:
            fail(f"{name}: not exactly one attribute: {parameter}")
        declaration = re.sub(r"\[\[.*", "", parameter, flags=re.S).strip()
        attribute = attributes[0].strip()
        buffer = re.match(r"buffer\((\d+)\)", attribute)
        if buffer:
            slot = int(buffer[1])
            if slot in slots:
                fail(f"{name}: buffer({slot}) bound twice: {declaration}")
            if slot >= MAX_BUFFERS:
                fail(f"{name}: buffer({slot}) is beyond {MAX_BUFFERS - 1}")
            slots[slot] = declaration
            if not re.search(r"\b(device|constant)\b", declaration):
                fail(f"{name}: no address space: {declaration}")
            if not re.search(r"[*&]", declaration):
                fail(f"{name}: no pointer or reference: {declaration}")
            arguments.append(f"Argument{{buffers[{slot}]}}")
            continue
        type_name = declaration.split()[-2]
        if attribute in VECTOR_IDS:
            if not re.fullmatch(r"(uint|ushort)[23]?", type_name):
                fail(f"{name}: {attribute} must be unsigned, is {type_name}")
            value = f"ids.{VECTOR_IDS[attribute]}"
            arguments.append(
                {
                    "3": f"uint3({value}.x, {value}.y, {value}.z)",
                    "2": f"uint2({value}.x, {value}.y)",
                }.get(type_name[-1], f"{value}.x")
            )
        elif attribute in SCALAR_IDS:
            if type_name not in ("uint", "ushort"):
                fail(f"{name}: {attribute} must be unsigned, is {type_name}")
            arguments.append(SCALAR_IDS[attribute])
        else:
            fail(f"{name}: unknown attribute [[{attribute}]]")
    return ", ".join(arguments)


ARGUMENT = """
struct Argument {
  void* p;
  template <class T>
  operator T*() const {
    return static_cast<T*>(p);
  }
  template <class T>
  operator T&() const {
    return *static_cast<T*>(p);
  }
};
"""
INSTANTIATION = re.compile(
    r'template\s*\[\[host_name\("(\w+)"\)\]\]\s*\[\[kernel\]\]\s*'
    r"decltype\(([^;]*?)\)\s*\2\s*;"
)
THREADGROUP_ARRAY = re.compile(
    r"(^\s*|[;{}]\s*)threadgroup"
    r"(\s+[\w:]+(?:<[^;]*?>)?\s+)(\w+)(\s*(?:\[[^;]*?\])*\s*;)",
    re.M,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--table", help="name of the table; none: no launchers")
    parser.add_argument("--include", action="append", default=[])
    options = parser.parse_args()
    with open(options.source) as file:
        source = file.read()

    bare = without_comments(source)
    kernels = find_kernels(bare)
    launchers = [(m[1], m[2]) for m in INSTANTIATION.finditer(bare)]
    launchers += [
        (name, name) for name, (template, _) in kernels.items() if not template
    ]
    rewritten = INSTANTIATION.sub(blank, source)
    rewritten = THREADGROUP_ARRAY.sub(
        r"\1QUIRE_SHIM_THREADGROUP\2\3\4 QUIRE_SHIM_USE(\3);", rewritten
    )
    output = "".join(f"#include <{header}>\n" for header in options.include)
    output += rewritten
    if options.table:
        output += '\n#line 1 "launchers"\n' + ARGUMENT
        entries = ""
        for name, call in launchers:
            kernel = call.split("<")[0].strip()
            if kernel not in kernels:
                fail(f"{name}: no kernel {kernel}")
            arguments = bind(name, kernels[kernel][1])
            output += (
                f"static void launch_{name}(const lockstep::ThreadIds& ids, "
                f"void* const* buffers) {{ {call}({arguments}); }}\n"
            )
            entries += f'{{"{name}", launch_{name}}}, '
        output += (
            "extern const lockstep::KernelEntry "
            f"lockstep_kernels_{options.table}[] = "
            f"{{{entries}{{nullptr, nullptr}}}};\n"
        )
    else:
        output += "".join(f"template decltype({call}) {call};\n"
                          for _, call in launchers if "<" in call)
    with open(options.output, "w") as file:
        file.write(output)


if __name__ == "__main__":
    main()
