#!/usr/bin/env bash
# containerd with its runc-v2 shim, as root of the machine, whose specification has no user namespace: what a container may
# there is what its namespaces, capabilities and the rules on devices leave, so those are looked at too.
. /payload/lib.sh

runtime=/usr/local/bin/sublet-runtime
image=localhost/busybox:latest

# ctr under a limit. A task that is started keeps its streams, so they are never the test's own.
ctr() { timeout 120 /usr/bin/ctr "$@" </dev/null; }
# run ID WORD...: a container by us. `options` holds further arguments.
run() { ctr run --rm --runtime io.containerd.runc.v2 --runc-binary "$runtime" "${options[@]}" "$image" "$@"; }
begin() { ctr run --detach --null-io --runtime io.containerd.runc.v2 --runc-binary "$runtime" "${options[@]}" "$image" "$@"; }
options=()

# The containers of runc, to compare with.
peer() { ctr run --rm "${options[@]}" "$image" "$@"; }

# end ID: stops and removes it.
end() {
  ctr task kill --signal KILL "$1" 2>/dev/null || :
  within 10 gone "$1"
  ctr task rm "$1" 2>/dev/null || :
  ctr container rm "$1"
}
gone() { ! ctr task ls | grep -Eq "^$1 .*(RUNNING|PAUSED)"; }
status() { ctr task ls | awk -v id="$1" '$1 == id {print $3}'; }
is() { [ "$(status "$1")" = "$2" ]; }

# digest FILE: stores it as a blob of the layout and prints its digest and size.
blob() {
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  cp "$1" "$layout/blobs/sha256/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1")"
}

# An image of busybox as an archive of the OCI layout, imported: the guest has no network.
make_image() {
  local work root layer config manifest
  work=$(mktemp -d) root=$work/root layout=$work/layout
  mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp,run} "$layout/blobs/sha256"
  cp /bin/busybox "$root/bin/"
  chroot "$root" /bin/busybox --install -s /bin
  chmod 1777 "$root/tmp"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  tar -C "$root" --owner=0 --group=0 -cf "$work/layer" .
  printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(sha256sum "$work/layer" | cut -d' ' -f1)" >"$work/config"
  layer=$(blob "$work/layer") config=$(blob "$work/config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
    "$config" "$layer" >"$work/manifest"
  manifest=$(blob "$work/manifest")
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
    "$manifest" "$image" >"$layout/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  tar -C "$layout" -cf "$work/archive" .
  ctr image import "$work/archive" >/dev/null
  mv "$root" /srv/rootfs
  rm -rf "$work"
}

ln -sf "$sublet" "$runtime"
systemctl start containerd
within 60 ctr version
make_image
ctr version | sed -n '/Server/,/Version/p'

test_a_command_runs_to_its_end() {
  eq output 'hello' "$(run c1 echo hello)"
  eq code 7 "$(run c1 sh -c 'exit 7'; echo $?)"
  fails 1 run c1 no-such-program
  has reason 'no-such-program.*executable file not found' "$said"
  # What failed left its id free.
  ctr container rm c1 2>/dev/null || :
  eq output 'again' "$(run c1 echo again)"
}

# What a container sees, as under runc; of what is hidden the place alone, as each takes another empty file system for it.
sight='id; ls -l /dev | awk "{print \$1,\$3,\$4,\$5,\$6,\$NF}" | grep -v ^total; grep -E "^(Cap|NoNew|Seccomp)" /proc/self/status
  awk "\$2 == \"/\" {next} \$2 ~ \"^/(proc|sys)/.\" && \$3 != \"cgroup2\" {print \$2, \$3 == \"proc\" ? \$4 : \"\"; next}
    {print \$2,\$3,\$4}" /proc/mounts | sort; ulimit -n; hostname; env | sort; ls /proc/self/fd; cat /proc/self/cgroup; ip link'
test_the_machine_is_that_of_runc() {
  local ours theirs
  for choice in --cwd=/ --privileged --net-host '--read-only --user=5:6' --seccomp; do
    echo "with $choice:"
    read -ra options <<<"$choice"
    ours=$(run c1 sh -c "$sight") theirs=$(peer c1 sh -c "$sight")
    diff <(echo "$theirs") <(echo "$ours")
  done
}

# Its root is the host's, so nothing but the rules keeps it from the disks.
test_devices_are_refused_but_the_usual() {
  local probe
  probe='for n in null zero full random urandom tty; do test -c /dev/$n || echo no $n; done; head -c 4 /dev/zero | od -An -tx1; echo x >/dev/null
    mknod /tmp/disk b 254 0 && echo made; head -c 1 /tmp/disk 2>&1 | head -n 1; mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2>&1 | head -n 1'
  said=$(run c1 sh -c "$probe")
  eq probe " 00 00 00 00
made
head: /tmp/disk: Operation not permitted
head: /tmp/kmsg: Operation not permitted" "$said"
  options=(--privileged)
  said=$(run c1 sh -c "mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg | wc -c")
  eq privileged 1 "$said"
}

# The nodes are the container's own, and the one that masks is the host's, unchangeable.
test_nodes_of_the_host_cannot_be_changed() {
  local before
  before=$(stat -c '%a %u %g %t:%T' /dev/null /dev/tty /dev/zero)
  run c1 sh -c 'chmod 600 /dev/null /dev/zero; chown 5 /dev/tty; for f in /proc/kcore /proc/keys /proc/timer_list; do chmod 600 $f; chown 5 $f; done; true' \
    2>/dev/null
  eq nodes "$before" "$(stat -c '%a %u %g %t:%T' /dev/null /dev/tty /dev/zero)"
}

test_a_task_is_executed_in_counted_and_killed() {
  local pid place
  options=(--env A=b --memory-limit 67108864)
  begin c2 sh -c 'echo of the first >/tmp/file; exec sleep 600'
  is c2 RUNNING
  pid=$(ctr task ls | awk '$1 == "c2" {print $2}')
  place=/sys/fs/cgroup/default/c2
  eq cgroup 0::/default/c2 "$(cat "/proc/$pid/cgroup")"
  eq limit 67108864 "$(cat "$place/memory.max")"
  within 10 ctr task exec --exec-id e0 c2 test -s /tmp/file
  eq exec 'of the first b' "$(ctr task exec --exec-id e1 c2 sh -c 'echo $(cat /tmp/file) $A')"
  eq code 9 "$(ctr task exec --exec-id e2 c2 sh -c 'exit 9'; echo $?)"
  eq user '5 6' "$(ctr task exec --exec-id e3 --user 5:6 c2 sh -c 'echo $(id -u) $(id -g)')"
  # Its rights are the container's.
  eq rights "$(grep Cap "/proc/$pid/status")" "$(ctr task exec --exec-id e4 c2 grep Cap /proc/self/status)"
  fails 1 ctr task exec --exec-id e5 c2 no-such-program
  has reason 'executable file not found' "$said"
  has terminal '/dev/pts/0' "$(timeout 60 script -qec "ctr task exec -t --exec-id e6 c2 sh -c 'tty; exit 3'; echo code \$?" /dev/null)"
  eq processes "$pid" "$(ctr task ps c2 | awk 'NR == 2 {print $1}')"
  ctr task exec --detach --exec-id e7 c2 sleep 500
  within 10 two_processes
  has metrics 'pids.current +2' "$(ctr task metrics c2)"
  has metrics 'memory.usage_limit +67108864' "$(ctr task metrics c2)"
  ctr task kill --signal KILL --exec-id e7 c2
  ctr task kill --signal TERM c2 # which process 1 has no handler for
  is c2 RUNNING
  ctr task kill --signal KILL c2
  within 10 is c2 STOPPED
  ctr task rm c2 || :
  ctr container rm c2
  [ ! -e "$place" ]
}
two_processes() { [ "$(ctr task ps c2 | wc -l)" = 3 ]; }

test_a_task_stands_still() {
  begin c3 sh -c 'while :; do echo x >>/tmp/count; sleep 0.1; done'
  ctr task pause c3
  is c3 PAUSED
  eq frozen 1 "$(cat /sys/fs/cgroup/default/c3/cgroup.freeze)"
  ctr task resume c3
  is c3 RUNNING
  # A paused one can be ended.
  ctr task pause c3
  end c3
}

test_a_terminal() {
  local said
  said=$(timeout 60 script -qec "stty rows 24 columns 80; ctr run --rm -t --runtime io.containerd.runc.v2 --runc-binary $runtime $image c4 \
    sh -c 'until stty size 2>/dev/null | grep -q \"24 80\"; do sleep 0.1; done; tty; exit 5'; echo code \$?" /dev/null | tr -d '\r')
  # At the end of its input `script` types a character.
  eq terminal "/dev/pts/0
code 5" "${said//^@/}"
}

test_a_directory_is_a_root() {
  eq rootfs 'hello from /srv/rootfs' "$(ctr run --rm --rootfs --runtime io.containerd.runc.v2 --runc-binary "$runtime" /srv/rootfs c5 \
    /bin/echo hello from /srv/rootfs)"
}

test_systemd_keeps_the_cgroup() {
  options=(--runc-systemd-cgroup --cgroup system.slice:ctr:c6 --memory-limit 67108864)
  begin c6 sleep 600
  eq unit active "$(systemctl is-active ctr-c6.scope)"
  eq limit 67108864 "$(cat /sys/fs/cgroup/system.slice/ctr-c6.scope/memory.max)"
  # The rules on devices hold there too, after systemd has written its own.
  ctr task exec --exec-id e1 c6 mknod /tmp/kmsg c 1 11
  fails 1 ctr task exec --exec-id e2 c6 head -c 1 /tmp/kmsg
  has reason 'Operation not permitted' "$said"
  systemctl daemon-reload
  fails 1 ctr task exec --exec-id e3 c6 head -c 1 /tmp/kmsg
  end c6
  [ ! -e /sys/fs/cgroup/system.slice/ctr-c6.scope ]
}

test_a_user_namespace_of_the_host_root() {
  options=(--uidmap 0:100000:65536 --gidmap 0:100000:65536 --remap-labels)
  eq ids '0 100000 65536' "$(run c7 awk '{print $1,$2,$3}' /proc/self/uid_map)"
  has mknod 'Operation not permitted' "$(run c7 sh -c 'mknod /tmp/kmsg c 1 11 2>&1; true')"
}

test_nothing_is_left() {
  eq containers '' "$(ctr container ls -q)"
  eq states '' "$(find /run/containerd/runc -mindepth 2 -maxdepth 2 2>/dev/null)"
  eq mounts '' "$(grep -E ' /run/containerd/io.containerd.runtime.v2.task' /proc/mounts)"
  eq cgroups '' "$(find /sys/fs/cgroup/default -mindepth 1 -type d 2>/dev/null)"
  within 10 no_shims
}
no_shims() { ! pgrep -f containerd-shim-runc-v2; }

run_tests
