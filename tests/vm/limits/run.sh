#!/usr/bin/env bash
# Limits of containers, as the kernel has them; how a container that goes over them ends; and that a container does not
# end with the session that started it.
. /payload/lib.sh

# First, so that the file server, too, is started in the session that ends.
test_a_container_outlives_its_session() {
  local scope
  # The session's own cgroup, as logind made it, is what a logout with KillUserProcesses=yes takes away.
  scope=$(session dev bash -c "$sublet run -d --name stays --network none host: sleep 600 >id && sed s/^0::// /proc/self/cgroup")
  has session 'user-1000\.slice/session-.*\.scope' "$scope"
  # It is gone already when nothing was left in it.
  systemctl stop "$(basename "$scope")" 2>/dev/null || true
  [ ! -e "/sys/fs/cgroup$scope" ]
  has ps 'stays' "$(on dev ps)"
  # Its files are still served.
  eq exec "$(cat /etc/debian_version)" "$(on dev exec stays cat /etc/debian_version)"
  on dev stop -t 1 stays
  has ps 'Exited \(137\).*stays' "$(on dev ps -a)"
  on dev rm stays
}

# Starts a container with every limit and reads them back from the cgroup that the user's systemd delegated.
read_back() {
  local user=$1 below=$2 id dir
  id=$(on "$user" run -d --name limits --network none --memory 64m --cpus 0.5 --pids-limit 50 host: sleep 600)
  dir=$(cgroup_of "$id")
  has "cgroup of $user" "$below/sublet\\.scope/c-$id\$" "$dir"
  eq memory.max 67108864 "$(cat "$dir/memory.max")"
  eq memory.swap.max 67108864 "$(cat "$dir/memory.swap.max")"
  eq cpu.max '50000 100000' "$(cat "$dir/cpu.max")"
  eq pids.max 50 "$(cat "$dir/pids.max")"
  eq inspect '67108864 500000000 50' \
    "$(on "$user" inspect --format '{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}' limits)"
  # The payload and nothing else is below the limits; the monitor is beside it.
  eq processes 1 "$(wc -l <"$dir/cgroup.procs")"
  has monitor sublet-monitor "$(xargs -n 1 ps -o args= -p <"$(dirname "$dir")/m-$id/cgroup.procs")"
  on "$user" rm -f limits
  [ ! -e "$dir" ]
}
test_limits_of_a_user_with_subordinate_ids() { read_back dev 'user-1000\.slice/user@1000\.service/.*'; }
test_limits_of_a_user_with_one_id() { read_back solo 'user-1001\.slice/user@1001\.service/.*'; }
test_limits_of_root() { read_back root 'system\.slice'; }

test_every_limit_is_in_its_file() {
  local id dir format
  id=$(on dev run -d --network none --memory 64m --memory-swap 96m --memory-reservation 32m --memory-high 48m \
    --cpu-quota 20000 --cpu-period 40000 -c 2048 host: sleep 600)
  dir=$(cgroup_of "$id")
  eq 'memory.swap.max memory.low memory.high' '33554432 33554432 50331648' "$(cat "$dir"/memory.{swap.max,low,high} | xargs)"
  eq 'cpu.max cpu.weight' '20000 40000 174' "$(cat "$dir"/cpu.{max,weight} | xargs)"
  format='{{.MemorySwap}} {{.MemoryReservation}} {{.MemoryHigh}} {{.CpuQuota}} {{.CpuPeriod}} {{.CpuShares}}'
  eq inspect '100663296 33554432 50331648 20000 40000 2048' \
    "$(on dev inspect --format "{{with .HostConfig}}$format{{end}}" "$id")"
  on dev rm -f "$id"
  id=$(on root run -d --network none --cpuset-cpus 1 --cpuset-mems 0 host: sleep 600)
  eq cpuset '1 0' "$(cat "$(cgroup_of "$id")"/cpuset.{cpus,mems} | xargs)"
  on root rm -f "$id"
  # systemd does not delegate this controller to users.
  fails 125 on dev run --rm --network none --cpuset-cpus 1 host: true
  has cpuset '--cpuset-cpus' "$said"
}

test_disks_have_rates_and_weights() {
  local id dir disk number began format
  disk=$(findmnt -no SOURCE /)
  number=$(lsblk -dno MAJ:MIN "$disk" | xargs)
  id=$(on root run -d --network none --device-write-bps "$disk:1m" --device-read-iops "$disk:500" --blkio-weight 500 host: sleep 600)
  dir=$(cgroup_of "$id")
  eq io.max "$number rbps=max wbps=1048576 riops=500 wiops=max" "$(cat "$dir/io.max")"
  has io.weight 'default (4950|500)$' "$(cat "$dir"/io.bfq.weight "$dir"/io.weight 2>/dev/null | grep default)"
  format='{{.BlkioWeight}} {{(index .BlkioDeviceWriteBps 0).Rate}} {{(index .BlkioDeviceReadIOps 0).Path}}'
  eq inspect "500 1048576 $disk" "$(on root inspect --format "{{with .HostConfig}}$format{{end}}" "$id")"
  began=$SECONDS
  on root exec "$id" dd if=/dev/zero of=/var/tmp/limited bs=1M count=4 oflag=direct 2>/dev/null
  [ $((SECONDS - began)) -ge 2 ] || { echo "4 MiB at 1 MiB a second took $((SECONDS - began)) s"; return 1; }
  on root update --device-write-bps "$disk:0" "$id"
  has io.max "$number rbps=max wbps=max riops=500 wiops=max" "$(cat "$dir/io.max")"
  on root rm -f "$id"
  # systemd does not delegate this controller to users.
  fails 125 on dev run --rm --network none --device-read-bps "$disk:1m" host: true
  has controller '--device-read-bps' "$said"
  fails 125 on root run --rm --network none --device-read-bps /dev/null:1m host: true
  has device '/dev/null is not a block device' "$said"
}

test_units_and_defaults() {
  local id
  for pair in 100000000=99999744 64M=67108864 1.5g=1610612736; do
    id=$(on dev run -d --network none --memory "${pair%=*}" --pids-limit -1 host: sleep 600)
    eq "memory.max of ${pair%=*}" "${pair#*=}" "$(cat "$(cgroup_of "$id")/memory.max")"
    eq "pids.max of -1" max "$(cat "$(cgroup_of "$id")/pids.max")"
    on dev rm -f "$id"
  done
  id=$(on dev run -d --network none host: sleep 600)
  eq "nothing asked for" 'max 2048' "$(cat "$(cgroup_of "$id")"/{memory,pids}.max | xargs)"
  on dev rm -f "$id"
}

test_refusals_in_dockers_words() {
  fails 125 on dev run --memory 1m host: true
  has memory 'Minimum memory limit allowed is 6MB' "$said"
  fails 125 on dev run --memory 12x host: true
  has unit "invalid size: '12x'" "$said"
  fails 125 on dev run --cpus 64 host: true
  has cpus 'Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available' "$said"
  fails 125 on dev run --cpus half host: true
  has number "invalid number of CPUs: 'half'" "$said"
  eq containers '' "$(on dev ps -aq)"
}

test_a_fork_bomb_is_held() {
  local id dir
  id=$(on dev run -d --name bomb --network none --pids-limit 50 host: bash -c 'bomb() { bomb | bomb & }; bomb; sleep 600')
  dir=$(cgroup_of "$id")
  # A number of refused forks: the bomb has met its limit.
  within 30 grep -Eq '^max [1-9]' "$dir/pids.events"
  [ "$(cat "$dir/pids.current")" -le 50 ]
  # The user is not hurt by it.
  eq 'another container' fine "$(on dev run --rm --network none host: echo fine)"
  on dev rm -f bomb
  [ ! -e "$dir" ]
}

# The first process of a container goes over its memory.
over_memory() {
  local user=$1
  fails 137 on "$user" run --name greedy --network none --memory 64m host: python3 -c 'b"x" * (300 << 20)'
  eq state 'exited 137 true' "$(on "$user" inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' greedy)"
  has ps 'Exited \(137\)' "$(on "$user" ps -a)"
  on "$user" rm greedy
}
test_over_memory_with_subordinate_ids() { over_memory dev; }
test_over_memory_with_one_id() { over_memory solo; }
test_over_memory_as_root() { over_memory root; }

test_a_child_over_memory_is_reported_too() {
  eq output 'child 137' "$(on dev run --name parent --network none --memory 64m host: sh -c 'tail /dev/zero; echo child $?')"
  eq state '0 true' "$(on dev inspect --format '{{.State.ExitCode}} {{.State.OOMKilled}}' parent)"
  on dev rm parent
}

test_a_killed_monitor_leaves_no_cgroup() {
  local id dir
  id=$(on dev run -d --name orphan --network none host: sleep 600)
  dir=$(cgroup_of "$id")
  kill -9 "$(cat "$(dirname "$dir")/m-$id/cgroup.procs")"
  on dev rm -f orphan
  [ ! -e "$dir" ]
}

# As little as Docker allows holds what sets the container up.
test_the_least_memory_is_enough_to_start() {
  eq output fine "$(on dev run --rm --network none --memory 6m host: echo fine)"
}

no_scope() { [ -z "$(find /sys/fs/cgroup -type d -name sublet.scope)" ]; }
test_nothing_is_left() {
  # File servers stay for 30 s after their last container; the scope goes with the last process.
  within 60 no_scope || { find /sys/fs/cgroup -path '*sublet.scope*' -type d; return 1; }
  eq processes '' "$(ps -eo args= | grep ^sublet- || true)"
}

# Not a test: what podman writes for the same options, for the record.
beside_podman() {
  local ours theirs dir root=/home/dev/podman-root
  mkdir -p "$root/bin" && cp /bin/busybox "$root/bin/" && chown -R dev: "$root"
  session dev podman run -d --name theirs --network none --memory 64m --cpus 0.5 --pids-limit 50 \
    --rootfs "$root" /bin/busybox sleep 600 >/dev/null 2>&1 || { echo "podman: could not start"; return; }
  ours=$(on dev run -d --name ours --network none --memory 64m --cpus 0.5 --pids-limit 50 host: sleep 600)
  for pid in $(session dev podman inspect --format '{{.State.Pid}}' theirs) $(on dev inspect --format '{{.State.Pid}}' ours); do
    dir=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
    echo "${dir#/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/}"
    for file in memory.max memory.swap.max memory.low memory.oom.group cpu.max cpu.weight pids.max; do
      printf '  %-16s %s\n' "$file" "$(cat "$dir/$file")"
    done
  done
  on dev rm -f "$ours" >/dev/null
  session dev podman rm -f -t 0 theirs >/dev/null 2>&1
}

beside_podman >/tmp/podman 2>&1
run_tests
status=$?
cat /tmp/podman
exit $status
