#!/usr/bin/env bash
# Stores on file systems that other people's machines have: NFS with root squashed and without attributes of users, and
# a disk with quotas. The registry is a directory that busybox serves.
. /payload/lib.sh
# Each command reads and writes over the emulated network stack.
limit_s=120

# The image `app`: a busybox and a file that takes a while. Its parts lie where a registry has them.
site=/srv/site
make_registry() {
  local work rootfs manifest hex
  work=$(mktemp -d)
  rootfs=$work/rootfs
  mkdir -p "$rootfs/bin" "$rootfs/etc" "$site/v2/app/blobs" "$site/v2/app/manifests"
  cp /bin/busybox "$rootfs/bin/"
  for applet in sh cat echo ls stat; do ln -s busybox "$rootfs/bin/$applet"; done
  echo first >"$rootfs/etc/word"
  chown -R 12:34 "$rootfs/etc"
  head -c 12000000 /dev/urandom >"$rootfs/noise"
  tar -C "$rootfs" --numeric-owner -c . >"$work/rootfs.tar"
  on root import -q "$work/rootfs.tar" app:1
  on root save -q -o "$work/app.tar" app:1
  on root rmi app:1
  mkdir "$work/layout"
  tar -C "$work/layout" -xf "$work/app.tar"
  for hex in "$work"/layout/blobs/sha256/*; do cp "$hex" "$site/v2/app/blobs/sha256:${hex##*/}"; done
  manifest=$(grep -o '"digest":"sha256:[0-9a-f]*"' "$work/layout/index.json" | head -n 1 | cut -d'"' -f4)
  cp "$site/v2/app/blobs/$manifest" "$site/v2/app/manifests/1"
  cp "$site/v2/app/blobs/$manifest" "$site/v2/app/manifests/$manifest"
  rm -rf "$work"
  busybox httpd -p 127.0.0.1:5000 -h "$site"
}
image=127.0.0.1:5000/app:1

make_nfs() {
  modprobe -a nfsd nfs
  mkdir /exported
  for user in dev solo; do install -d -o "$user" -g "$user" -m 700 "/exported/$user"; done
  echo '/exported 127.0.0.1(rw,sync,root_squash,no_subtree_check)' >/etc/exports
  systemctl start nfs-server
  mkdir /nfs
  # Of this version it has no attributes of users.
  mount -t nfs -o vers=4.1 127.0.0.1:/exported /nfs
}

# What the machine is: a test fails if the rest would say nothing.
test_the_machine_is_as_it_should_be() {
  has 'mounted' ' /nfs nfs4 .*vers=4\.1' "$(cat /proc/mounts)"
  fails 1 touch /nfs/squashed
  session dev touch /nfs/dev/file
  fails 1 session dev python3 -c 'import os; os.setxattr("/nfs/dev/file", "user.x", b"y")'
  has 'no attributes' 'Operation not supported' "$said"
  session dev rm /nfs/dev/file
}

sound() {
  local user=$1 store=$2 said
  said=$(on "$user" system fsck 2>&1)
  eq 'what fsck finds' '' "$(grep -v ': clean$' <<<"$said")"
  eq 'df and du' "$(session "$user" du -s -B1 "$store/store" | cut -f1)" \
    "$(on "$user" system df --format '{{.Type}} {{.SizeBytes}}' | sed -n 's/^Images //p')"
}

# stores_on_nfs USER: the life of images, all of whose bytes are on NFS.
stores_on_nfs() {
  local user=$1 store=/nfs/$1 said id
  unit=(-E SUBLET_ROOT="$store")
  # Two at once: one of them waits for what the other fetches.
  on "$user" pull -q "$image" >"/tmp/$user.first" 2>&1 &
  on "$user" pull -q "$image"
  wait $! || { cat "/tmp/$user.first"; return 1; }
  sound "$user" "$store"
  said=$(on "$user" run --name box --network none "$image" sh -c 'cat /etc/word && echo second >/etc/word' 2>&1)
  echo "$said"
  has output '^first$' "$said"
  # Overlayfs writes to nothing on NFS; which driver is taken is said once, with the reason.
  has 'the driver' 'fuse' "$said"
  eq driver fuse "$(on "$user" inspect --format '{{.GraphDriver.Name}}' box)"
  eq changed 'C /etc
C /etc/word' "$(on "$user" diff box)"
  on "$user" commit -q box 127.0.0.1:5000/app:2
  on "$user" rm box
  # Its server has files open that NFS keeps for so long.
  said=$(on "$user" run --rm --network none 127.0.0.1:5000/app:2 sh -c 'echo third >/etc/word && cat /etc/word' 2>&1)
  has committed '^third$' "$said"
  fails 1 grep 'not removed' <<<"$said"
  eq 'containers and what is left of them' '' "$(ls -A "$store"/hosts/*/containers)"
  sound "$user" "$store"
  # Before the servers of files have ended, which hold what is to be removed.
  on "$user" rmi "$image"
  sound "$user" "$store"
  eq 'the other one' second "$(on "$user" run --rm --network none 127.0.0.1:5000/app:2 cat /etc/word 2>/dev/null)"
  on "$user" rmi 127.0.0.1:5000/app:2
  on "$user" system prune -f
  sound "$user" "$store"
  eq images '' "$(on "$user" images -q)"
  # What was removed while it was open has another name until then.
  within 60 nothing_left "$store"
}
nothing_left() { ! find "$1/store/blobs" "$1/store/objects" "$1/store/layers" "$1/store/chains" "$1/store/trash" -type f | grep .; }
test_a_store_on_nfs_with_subordinate_ids() { stores_on_nfs dev; }

# copies_on_nfs USER OPTIONS: a container's own copy of the image, whose file system keeps no other owner and no attributes.
copies_on_nfs() {
  local user=$1 store=/nfs/$1 said
  shift
  unit=(-E SUBLET_ROOT="$store")
  on "$user" pull -q "$image"
  said=$(on "$user" run --name box --network none --storage-driver copy "$@" "$image" sh -c 'cat /etc/word && echo second >/etc/word' 2>&1)
  has output '^first$' "$said"
  eq changed 'C /etc
C /etc/word' "$(on "$user" diff box)"
  on "$user" commit -q box copied:1
  on "$user" rm box
  eq committed second "$(on "$user" run --rm --network none copied:1 cat /etc/word 2>/dev/null)"
  on "$user" rmi "$image" copied:1
}
test_a_copy_on_nfs_with_one_id() { copies_on_nfs solo; }
test_a_copy_on_nfs_with_subordinate_ids() {
  unit=(-E SUBLET_ROOT=/nfs/dev)
  on dev pull -q "$image"
  fails 125 on dev run --rm --network none --storage-driver copy "$image" cat /etc/word
  echo "$said"
  has 'the call' 'chown 12:34' "$said"
  has 'what helps' 'hint: .*--userns=single' "$said"
  eq 'containers' '' "$(on dev ps -aq)"
  copies_on_nfs dev --userns single
}
test_a_store_on_nfs_with_one_id() { stores_on_nfs solo; }

# The hard limit is told with what helps, and when there is room the same command works.
test_a_quota() {
  local store=/quota/dev
  unit=(-E SUBLET_ROOT="$store")
  setquota -u dev 0 6000 0 0 /quota
  fails 1 on dev pull "$image"
  echo "$said"
  has 'the errno' 'EDQUOT' "$said"
  has 'what helps' 'hint: free some space' "$said"
  has 'what df shows' '^Store: .*quota' "$(on dev system df -v)"
  setquota -u dev 0 60000 0 0 /quota
  on dev pull -q "$image"
  eq runs first "$(on dev run --rm --network none "$image" cat /etc/word)"
  sound dev "$store"
  # Of inodes a commit needs some.
  on dev run --name box --network none "$image" sh -c 'echo x >/etc/word'
  setquota -u dev 0 0 0 "$(($(quota_files) + 2))" /quota
  fails 1 on dev commit -q box app:2
  echo "$said"
  has 'what helps' 'hint: free some space' "$said"
  setquota -u dev 0 0 0 0 /quota
  on dev commit -q box app:2
  on dev rm box
}
quota_files() { repquota -u -v /quota | awk '$1 == "dev" {print $6}'; }

# A file system in a file whose quotas are on.
make_quota() {
  modprobe -a loop quota_v2
  truncate -s 600M /var/quota
  mkfs.ext4 -q -O quota -E quotatype=usrquota /var/quota
  mkdir /quota
  mount -o loop,usrquota /var/quota /quota
  install -d -o dev -g dev -m 700 /quota/dev
}

make_registry
make_nfs
make_quota
run_tests
