#!/bin/sh
# Leaves a working virtual environment with dstore installed from the lock file.
#   .ci/setup.sh PYTHON VENV
# libp2p needs fastecdsa, which is built from source: that takes a C compiler, Python's
# headers and those of GMP.  Where they are missing and we are root on a Debian-like system,
# they are installed; elsewhere the one command that does it is printed.
set -eu

python=$1
venv=$2

version_ok() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if ! version_ok "$python"; then
    for candidate in python3.13 python3.12 python3.11; do
        if version_ok "$candidate"; then python=$candidate; break; fi
    done
fi
version_ok "$python" || {
    echo "dstore needs Python 3.11 or newer; '$python' is not. Try: make PYTHON=/path/to/python3.11" >&2
    exit 1
}

can_build() {
    work=$(mktemp -d)
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    printf '#include <Python.h>\n#include <gmp.h>\nint main(void){mpz_t x; mpz_init(x); return 0;}\n' >"$work/probe.c"
    result=1
    "${CC:-cc}" -I"$include" "$work/probe.c" -c -o "$work/probe.o" 2>/dev/null \
        && "${CC:-cc}" "$work/probe.o" -lgmp -o "$work/probe" 2>/dev/null && result=0
    # undefined Python symbols do not occur: the probe uses none of them
    rm -rf "$work"
    return $result
}

has_venv() { "$python" -c 'import venv, ensurepip' 2>/dev/null; }

ready() { can_build && has_venv; }

if ! ready; then
    needed="A C compiler, the headers of Python and GMP, and Python's venv are needed"
    packages='build-essential python3-dev python3-venv libgmp-dev'
    if command -v apt-get >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ]; then
            echo "installing $packages (a C compiler and the GMP headers, for fastecdsa)" >&2
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
            ready || {
                echo "$needed; $python still lacks some of them. Try: make PYTHON=/usr/bin/python3" >&2
                exit 1
            }
        else
            echo "$needed. Run this, then try again:" >&2
            echo "    sudo apt-get install -y $packages" >&2
            exit 1
        fi
    elif command -v dnf >/dev/null 2>&1; then
        echo "$needed. Run this, then try again:" >&2
        echo "    sudo dnf install -y gcc python3-devel gmp-devel" >&2
        exit 1
    else
        echo "$needed." >&2
        exit 1
    fi
fi

# An environment that was cut short, or whose interpreter is gone, is made anew.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
echo "installing dstore and its locked dependencies into $venv" >&2
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements.lock
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps -e .
"$venv/bin/dstore" version >&2
