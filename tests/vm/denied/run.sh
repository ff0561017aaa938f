#!/usr/bin/env bash
# What the host forbids: one clear error or one line, the fix, the right exit code; and `--strict`.
. /payload/lib.sh

# forbidden SETTING: user namespaces are off by this one.
forbidden() {
  local before=${1%=*} setting=$1
  before=$(sysctl -n "${setting%=*}")
  sysctl -qw "$setting"
  fails 125 on dev run --rm host: true
  sysctl -qw "${setting%=*}=$before"
  eq 'lines of errors' 1 "$(grep -c '^error:' <<<"$said")"
  has setting "hint: .*${setting%=*}" "$said"
  # `doctor` had the same answer, and all is well again.
  eq again fine "$(on dev run --rm --network none host: echo fine)"
}
test_user_namespaces_for_root_only() { forbidden kernel.unprivileged_userns_clone=0; }
test_no_user_namespaces() { forbidden user.max_user_namespaces=0; }

test_doctor_says_that_nothing_can_run() {
  local said
  sysctl -qw user.max_user_namespaces=0
  said=$(on dev doctor)
  sysctl -qw user.max_user_namespaces=15000
  has ids '^ids +not possible$' "$said"
  has fix 'fix: .*user.max_user_namespaces' "$said"
}

test_no_subordinate_ids_is_one_line() {
  local lines
  lines=$(on solo run --rm --network none host: true 2>&1)
  eq lines 1 "$(wc -l <<<"$lines")"
  has line 'ids: subuid is not possible: no line for solo in /etc/subuid; using one-id \(.*usermod' "$lines"
  fails 125 on solo --strict run --rm --network none host: true
}

# without_bus WORD...: as dev, outside of any session, with no bus and no runtime directory.
without_bus() {
  systemd-run --quiet --pipe --wait --collect --expand-environment=no --uid=dev -p PrivateTmp=yes \
    -p InaccessiblePaths=/run/user "${unit[@]}" env HOME=/home/dev "${before[@]}" \
    "$sublet" --root /home/dev/other "$@" </dev/null
}
before=()

test_no_bus_no_delegation_no_cgroup() {
  local lines
  fails 0 without_bus run --rm --network none host: true
  eq 'lines about cgroups' 1 "$(grep -c '^warning: cgroup: ' <<<"$said")"
  has line 'cgroup: scope is not possible: .*using nothing \(.*enable-linger' "$said"
  fails 125 without_bus run --rm --network none --memory 64m host: true
  has refusal '^error: .*' "$said"
  has refusal '--memory is not possible without a cgroup' "$said"
  fails 125 without_bus --strict run --rm --network none host: true
}

test_a_delegated_directory() {
  unit=(-p Delegate=yes)
  eq 'no limits' fine "$(without_bus run --rm --network none host: echo fine)"
  # We stand in the directory ourselves, so the kernel gives its controllers to nobody below.
  fails 125 without_bus run --rm --network none --memory 64m host: echo fine
  has refusal '--memory needs the memory controller, which cgroup .* cannot give on while processes stand in it' "$said"
  has fix 'hint: .*mkdir .*/in; echo ' "$said"
  before=(sh -c 'g=/sys/fs/cgroup$(sed s/^0::// /proc/self/cgroup); mkdir $g/in; echo $$ >$g/in/cgroup.procs; exec "$@"' sh)
  eq limit 67108864 "$(without_bus run --rm --network none --memory 64m host: cat /sys/fs/cgroup/memory.max)"
}

test_no_devices() {
  chmod 600 /dev/net/tun
  fails 125 on dev run --rm host: true
  has tun '/dev/net/tun.*' "$said"
  has fix 'hint: .*/dev/net/tun' "$said"
  eq 'without network' fine "$(on dev run --rm --network none host: echo fine)"
  said=$(on dev doctor)
  has network '^network +not possible$' "$said"
  chmod 666 /dev/net/tun
}

run_tests
