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

# bundle USER: a bundle of busybox that sleeps, with limits.
bundle() {
  local dir
  dir=$(eval echo "~$1")/bundle
  rm -rf "$dir" && mkdir -p "$dir/rootfs/bin" && cp /bin/busybox "$dir/rootfs/bin/" && chown -R "$1:" "$dir"
  session "$1" "$sublet" runtime spec --rootless -b "$dir"
  python3 - "$dir/config.json" <<'PROGRAM'
import json, sys
config = json.load(open(sys.argv[1]))
config["process"].update(terminal=False, args=["/bin/busybox", "sleep", "600"])
config["linux"]["resources"] = {"memory": {"limit": 67108864}, "pids": {"limit": 20}, "cpu": {"quota": 50000}}
json.dump(config, open(sys.argv[1], "w"))
PROGRAM
  echo "$dir"
}

# The runtime as an engine of the user calls it, each time from another login session.
test_a_scope_is_entered_from_another_session() {
  local dir scope place
  dir=$(bundle dev)
  scope=user.slice/oci-test-e2e.scope
  python3 - "$dir/config.json" <<'PROGRAM'
import json, sys
config = json.load(open(sys.argv[1]))
config["linux"]["cgroupsPath"] = "user.slice:oci-test:e2e"
json.dump(config, open(sys.argv[1], "w"))
PROGRAM
  session dev bash -c "$sublet runtime --systemd-cgroup run --detach -b $dir c1 >/dev/null 2>~/said" || { cat /home/dev/said; return 1; }
  place=/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/$scope
  eq limits '67108864 20 50000 100000' "$(cat "$place"/{memory,pids,cpu}.max | xargs)"
  eq 'cgroup inside' 0::/ "$(session dev "$sublet" runtime exec c1 /bin/busybox cat /proc/self/cgroup)"
  has stats '"memory":.*"limit":67108864.*"pids":.*"limit":20' "$(session dev "$sublet" runtime events --stats c1)"
  session dev "$sublet" runtime update --pids-limit 30 c1
  eq update '30 30' "$(cat "$place/pids.max") $(systemctl --user -M dev@ show --value -p TasksMax oci-test-e2e.scope)"
  session dev "$sublet" runtime pause c1
  eq paused 1 "$(cat "$place/cgroup.freeze")"
  session dev "$sublet" runtime resume c1
  session dev "$sublet" runtime delete --force c1
  [ ! -e "$place" ]
}

# Without a path there is none for a session, and limits are refused; without limits the container runs.
test_a_session_without_a_place_runs_without_limits_only() {
  local dir
  dir=$(bundle dev)
  fails 1 session dev bash -c "$sublet runtime run --detach -b $dir c1 2>&1 >/dev/null </dev/null"
  has refusal 'linux.resources.* is not possible without a cgroup' "$said"
  python3 - "$dir/config.json" <<'PROGRAM'
import json, sys
config = json.load(open(sys.argv[1]))
config["linux"]["resources"] = {}
json.dump(config, open(sys.argv[1], "w"))
PROGRAM
  # In one session, whose end takes along what has no cgroup of its own; nothing of it may hold the session's pipe.
  session dev bash -ec "$sublet runtime run --detach -b $dir c1 >/dev/null 2>~/said </dev/null
    $sublet runtime exec c1 /bin/busybox true
    $sublet runtime delete --force c1"
  has line 'runs without a cgroup' "$(cat /home/dev/said)"
}

test_nothing_is_left() {
  local left
  left=$(find /sys/fs/cgroup -name '*oci-test*')
  eq cgroups '' "$left"
}

run_tests
