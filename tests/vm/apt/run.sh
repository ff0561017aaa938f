#!/usr/bin/env bash
# The main job with every part at once: a plain user pulls Debian from a registry and installs packages from the host's
# mirror, through the builtin network, with limits that the kernel keeps.
. /payload/lib.sh

registry=$(cat /payload/registry)
image=$registry/debian
# It is plain HTTP and, seen from here, not on the loopback.
unit=(-E SUBLET_INSECURE_REGISTRIES="$registry")
# Two to four minutes of emulation, more on a loaded machine.
limit_s=600

# In the container: the job, a download by what it installed, and the limits as the container itself sees them.
job='
set -e
apt-get $options update
apt-get $options install -y curl
curl --version
echo "downloaded: $(curl -fsS "http://$registry/v2/")"
cd /sys/fs/cgroup
echo "limits: $(cat memory.max pids.max | xargs)"
echo "at most: $(cat memory.peak pids.peak | xargs)"
echo "killed or refused: $(sed -n "s/^oom_kill //p" memory.events) $(sed -n "s/^max //p" pids.events)"
'

running() { [ "$(on "$1" inspect --format '{{.State.Status}}' apt)" = running ]; }

# install USER OPTION…: the job of this user with these options of apt; the limits are read from outside meanwhile.
install() {
  local user=$1 said=/tmp/$1.job id dir
  on "$user" pull "$image"
  on "$user" run --rm --name apt --memory 512m --pids-limit 200 -e options="${*:2}" -e registry="$registry" \
    -e DEBIAN_FRONTEND=noninteractive "$image" sh -c "$job" >"$said" 2>&1 &
  within 120 running "$user" || { cat "$said"; return 1; }
  id=$(on "$user" inspect --format '{{.Id}}' apt)
  dir=$(cgroup_of "$id")
  has cgroup "/user@$(id -u "$user")\\.service/.*/sublet\\.scope/c-$id\$" "$dir"
  eq memory.max 536870912 "$(cat "$dir/memory.max")"
  eq pids.max 200 "$(cat "$dir/pids.max")"
  wait $! || { cat "$said"; return 1; }
  has curl '^curl [0-9]+\.[0-9]+' "$(cat "$said")"
  has 'a download' '^downloaded: \{\}$' "$(cat "$said")"
  has 'limits inside' '^limits: 536870912 200$' "$(cat "$said")"
  has 'under the limits' '^killed or refused: 0 0$' "$(cat "$said")"
  eq ps '' "$(on "$user" ps -aq)"
}

# Both users at once. One id has no other user that apt could change to, and gets the shorter list of packages.
begin() { (set -eu; install "$@") >"/tmp/$1.said" 2>&1; echo $? >"/tmp/$1.code"; }
begin dev & begin solo -o APT::Sandbox::User=root --no-install-recommends &
wait
installed() { cat "/tmp/$1.said"; return "$(cat "/tmp/$1.code")"; }
test_packages_within_limits_with_subordinate_ids() { installed dev; }
test_packages_within_limits_with_one_id() { installed solo; }

run_tests
status=$?
# For the record: bytes and processes of both.
grep -h '^at most: ' /tmp/dev.job /tmp/solo.job
exit $status
