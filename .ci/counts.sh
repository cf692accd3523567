# What a log of `make check` or `make fuzz` says, for `.ci/run` (which sources this) and its tests.
# pytest closes with one line such as
#   2 failed, 75 passed, 1 skipped, 1 error in 66.59s (0:01:06)
# (between rows of = where it is not quiet); where several runs share a log, the last counts,
# as `make test` includes what ran before it.
# shellcheck shell=sh

closing_line() { # closing_line LOG
    grep -E '^(=+ )?[0-9]+ [a-z]+(, [0-9]+ [a-z]+)* in [0-9.]+s' "$1" | tail -n 1
}

count() { # count LOG WORD: the number before WORD on the closing line, 0 where there is none
    closing_line "$1" | grep -oE "[0-9]+ $2( |,|\$)" | awk '{ n = $1 } END { print n + 0 }'
}

failures() { # failures LOG: tests that failed, and those that broke before or after they ran
    echo "$(($(count "$1" failed) + $(count "$1" 'errors?')))"
}

fixtures_skipped() { # fixtures_skipped LOG: true where tests did not find the external test data
    grep -qE '^SKIPPED .*DSTORE_FIXTURES' "$1"
}
