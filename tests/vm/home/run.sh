#!/usr/bin/env bash
# Two machines whose users have one home on NFS, as the login nodes of a cluster: each sees the containers of the other one as
# such, and nothing that it does takes anything from them. The first machine serves the homes and tells the second what to do.
. /payload/lib.sh
# Each command reads and writes over the emulated network stack.
limit_s=120

# there WORD...: the command of lib.sh on the second machine; ends as it ended. What one says that succeeds is left out.
there() {
  local answer
  exec 3<>/dev/tcp/10.9.0.2/7000 || return 99
  printf '%s\n' "$(printf '%q ' "$@")" >&3
  answer=$(cat <&3)
  exec 3>&-
  printf '%s' "${answer%$'\n'*}"
  return "${answer##*$'\n'}"
}

make_home() {
  modprobe -a nfsd nfs
  install -d /exported/home
  for user in dev solo; do install -d -o "$user" -g "$user" -m 700 "/exported/home/$user"; done
  echo '/exported/home 10.9.0.0/24(rw,sync,root_squash,no_subtree_check)' >/etc/exports
  # What a machine that went down held is free again after so long.
  printf '[nfsd]\nlease-time=15\ngrace-time=15\n' >/etc/nfs.conf.d/short.conf
  systemctl start nfs-server
  mount -t nfs -o vers=4.1 10.9.0.1:/exported/home /home
}

make_image() {
  local rootfs
  rootfs=$(mktemp -d)
  mkdir -p "$rootfs/bin" "$rootfs/etc"
  cp /bin/busybox "$rootfs/bin/"
  for applet in sh cat echo sleep; do ln -s busybox "$rootfs/bin/$applet"; done
  echo first >"$rootfs/etc/word"
  tar -C "$rootfs" --numeric-owner -c . >/tmp/app.tar
  on dev import -q /tmp/app.tar app:1
}

# What the machines are: a test fails if the rest would say nothing.
test_the_machines_are_two_with_one_home() {
  [ "$(cat /etc/machine-id)" != "$(there cat /etc/machine-id)" ]
  eq 'the other name' other "$(there hostname)"
  session dev touch /home/dev/seen
  there session dev rm /home/dev/seen
  fails 1 session dev stat /home/dev/seen
  has 'the image' '^app' "$(there on dev images)"
}

begin_both() {
  on dev run -d --name web --network none app:1 sleep 1000
  there on dev run -d --name web --network none app:1 sleep 1000
  there on dev run -d --name far --network none app:1 sleep 1000
}

test_each_sees_the_containers_of_the_other_as_such() {
  begin_both
  eq 'names here' web "$(on dev ps --format '{{.Names}}')"
  eq 'names there' $'far\nweb' "$(there on dev ps --format '{{.Names}}' | sort)"
  has 'seen from here' '^far Up .* on other$' "$(on dev ps --all-machines --format '{{.Names}} {{.Status}}')"
  has 'seen from there' '^web Up .* on guest$' "$(there on dev ps --all-machines --format '{{.Names}} {{.Status}}')"
  fails 1 on dev stop far
  has 'whose it is' 'hint: far is a container of the machine other' "$said"
}

# Each command that takes away what nobody uses, on one machine, while the other one uses it.
test_nothing_is_taken_from_the_other() {
  local command
  on dev stop -t 0 web
  on dev rm web
  for command in 'container prune -f' 'image prune -a -f' 'volume prune -f' 'network prune -f' 'system prune -a -f' 'system fsck --repair'; do
    # shellcheck disable=SC2086 # words
    on dev $command
    eq "state after $command" running "$(there on dev inspect --format '{{.State.Status}}' far)"
  done
  fails 1 on dev rmi app:1
  has 'who uses it' 'of the machine other$' "$said"
  fails 1 on dev rmi -f app:1
  has 'its own pages' first "$(there on dev exec far cat /etc/word)"
  there on dev stop -t 0 far
  there on dev start far
  eq 'from the start' first "$(there on dev exec far cat /etc/word)"
}

test_a_reset_leaves_what_the_other_stands_on() {
  on dev import -q /tmp/app.tar own:1
  on dev volume create kept
  on dev system reset --force
  eq 'images here' app:1 "$(on dev images --format '{{.Repository}}:{{.Tag}}')"
  eq 'volumes here' '' "$(on dev volume ls -q)"
  eq 'state there' $'far running\nweb running' "$(there on dev inspect --format '{{slice .Name 1}} {{.State.Status}}' far web)"
  eq 'its own pages' first "$(there on dev exec far cat /etc/word)"
  eq 'from the image' first "$(there on dev run --rm --network none app:1 cat /etc/word)"
  eq 'here too' first "$(on dev run --rm --network none app:1 cat /etc/word)"
}

# Both make and remove containers and images at once: locks hold over NFS.
test_both_work_at_once() {
  (set -eu; for n in 1 2 3; do
    there on dev import -q /tmp/there.tar "there:$n"
    there on dev run --rm --network none "there:$n" cat /etc/word
    there on dev rmi "there:$n"
  done) >/tmp/there.said 2>&1 &
  for n in 1 2 3; do
    on dev import -q /tmp/app.tar "here:$n"
    eq "run $n" first "$(on dev run --rm --network none "here:$n" cat /etc/word 2>/tmp/here.said)"
    fails 1 grep 'not removed' /tmp/here.said
    on dev rmi "here:$n"
  done
  wait $! || { cat /tmp/there.said; return 1; }
  eq 'what was said there' 3 "$(grep -c '^second$' /tmp/there.said)"
  eq 'what fsck finds' '' "$(on dev system fsck 2>&1 | grep -v ': clean$')"
}
make_other_image() {
  there eval 'd=$(mktemp -d) && mkdir -p $d/bin $d/etc && cp /bin/busybox $d/bin/ && ln -s busybox $d/bin/cat && echo second >$d/etc/word && tar -C $d -c . >/tmp/there.tar'
}

# It goes down without a word: its containers are not repaired here, and it finds them ended when it is back.
test_the_other_goes_down_and_comes_back() {
  there eval 'echo 1 >/proc/sys/kernel/sysrq; (sleep 1; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 &'
  within 30 is_down
  has 'as recorded' '^far Up .* on other$' "$(on dev ps --all-machines --format '{{.Names}} {{.Status}}')"
  on dev system prune -a -f
  eq 'work goes on' first "$(on dev run --rm --network none app:1 cat /etc/word)"
  within 240 there true
  eq 'as it finds them' $'far exited\nweb exited' "$(there on dev ps -a --format '{{.Names}} {{.State}}' | sort)"
  there on dev start far
  eq 'again' first "$(there on dev exec far cat /etc/word)"
  there on dev rm -f far web
  on dev rmi app:1
}
is_down() { ! timeout 5 bash -c 'exec 3<>/dev/tcp/10.9.0.2/7000 && echo true >&3 && cat <&3' | grep -qx 0; }

make_home
make_image
# It boots beside.
within 300 there true
make_other_image
run_tests
