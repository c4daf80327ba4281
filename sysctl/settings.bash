# What apply and revert share: how a profile is read, and how a key becomes a file. Sourced.

# The program's own name, for what it says.
program=${0##*/}

say() { printf '%s: %s\n' "$program" "$*"; }
fail() {
    printf '%s: %s\n' "$program" "$*" >&2
    exit 1
}

# Where what was there before is kept, one "key = value" a line.
# shellcheck disable=SC2034 # who sources this uses it
state=/var/lib/tidegate/sysctl.before

# net.ipv4.tcp_mem -> /proc/sys/net/ipv4/tcp_mem
file_of() { printf '/proc/sys/%s' "${1//.//}"; }

# A value with its white space made single.
value_of() {
    local words
    read -r -a words <"$(file_of "$1")" || true
    printf '%s' "${words[*]}"
}

need_root() {
    if ((EUID != 0)); then
        fail "only root may change the kernel's settings: run it with sudo, or see --dry-run"
    fi
}
