#!/usr/bin/env bash
# Cgroups as an OCI runtime makes them, where controllers and systemd are: the crate's own test program in each place that
# a caller can stand in. Its arguments are what must be there, so that nothing is passed by skipping.
. /payload/lib.sh

# Seconds that a session may last: each scope takes one under emulation.
limit_s=300

# here NAME...: the program's arguments for what must be there.
here() { printf -- '--here=%s ' "$@"; }

test_root_in_a_service() {
  # The scheduler that knows weights of one disk.
  modprobe bfq && echo bfq >/sys/block/vda/queue/scheduler
  # shellcheck disable=SC2046 # an argument each
  timeout 300 /payload/oci $(here directory systemd memory cpu cpuset io pids hugetlb)
}

# A login session's cgroup is root's: no directory, but the user's systemd keeps scopes.
test_a_user_in_a_session() { session dev /payload/oci --here=systemd; }
test_a_user_with_one_id_in_a_session() { session solo /payload/oci --here=systemd; }

# What a user's systemd delegates.
delegated() {
  # shellcheck disable=SC2046
  session "$1" systemd-run --user --scope --quiet -p Delegate=yes /payload/oci $(here directory systemd memory cpu pids)
}
test_a_user_in_a_delegated_scope() { delegated dev; }
test_a_user_with_one_id_in_a_delegated_scope() { delegated solo; }

test_nothing_is_left() {
  local left
  left=$(find /sys/fs/cgroup -name '*oci-test*')
  eq cgroups '' "$left"
}

run_tests
