#!/usr/bin/env bash
# Labels of security modules by the OCI runtime, where AppArmor is: the profile that a configuration names is that of the
# payload and of what is executed beside it.
. /payload/lib.sh

# A profile of the name sublet-test, as apparmor_parser 4.1 makes it for Linux 5.4 and later (the guest has none) of:
#   profile sublet-test flags=(attach_disconnected) { file, capability, signal, deny /etc/passwd r, }
load_profile() {
  python3 - <<'PROGRAM'
import base64, zlib
policy = zlib.decompress(base64.b64decode("""
eNrtVt1OgzAUPpQWyo+b3Jn4DCZeGO98FQ3bQEnIIAPNjBd6qS+h77In0CfSU1YKZUwTNbtY+MjXQs+hpSfnfIVyuIsWRZLNgTAAoBzyRRYnaQQ286G4
naRReVJGRQnUgjgNrwuwCTpC03DqQR6WN1drM6HC8Ino+FEbpmFenJ/hDD1mTh3IszSZ3s8mYONqYTiLQ7A+xHzHl8sL7I5wlneAeVbGabQUbxkgzAI2
NKCSNSy09vltgnzrZ0gKL9LxY9U6lnzitd0gGysImpV/87UD9humlg9M5UmdU0YrC4whXPsO3ujbC9P0jT1v0bdAvfy2eqxY39c9hVNl6+Pr6qGlg8Gf
N/FE2noZdHSSyN6U91TTybVucqSDdJEe0m/paiDrxqxaLqlfbZ31qzX6r/8AUTXr7iBBGMbF10YOtSdPnTsHMFKj46GyftRfX52/NsbYxUj6VQzHnQj/
FqJi15ni7GBfBHfhaSN6DrjqP0PsssZoSIgtuvwFpvtIWA==
"""))
with open("/sys/kernel/security/apparmor/.load", "wb", buffering=0) as file:
    file.write(policy)
PROGRAM
}

# bundle USER PROFILE: a bundle of busybox whose payload has that profile.
bundle() {
  local dir
  dir=$(eval echo "~$1")/bundle
  rm -rf "$dir" && mkdir -p "$dir/rootfs/bin" "$dir/rootfs/etc" && cp /bin/busybox "$dir/rootfs/bin/"
  cp /etc/passwd /etc/group "$dir/rootfs/etc/" && chown -R "$1:" "$dir"
  # shellcheck disable=SC2046 # an argument or none
  runtime "$1" spec $([ "$1" = root ] || echo --rootless) -b "$dir"
  python3 - "$dir/config.json" "$2" <<'PROGRAM'
import json, sys
config = json.load(open(sys.argv[1]))
config["process"].update(terminal=False, args=["/bin/busybox", "sleep", "600"], apparmorProfile=sys.argv[2])
json.dump(config, open(sys.argv[1], "w"))
PROGRAM
  echo "$dir"
}

# runtime USER WORD...: the OCI runtime in a session of the user.
runtime() {
  local user=$1
  shift
  if [ "$user" = root ]; then
    timeout "$limit_s" "$sublet" runtime "$@" </dev/null
  else
    session "$user" "$sublet" runtime "$@"
  fi
}

# confined USER: all in one session, whose end takes along what has no cgroup of its own; nothing of it may hold the pipe.
confined() {
  local dir words said
  dir=$(bundle "$1" sublet-test)
  words="set -e
    $sublet runtime run --detach -b $dir c1 >/dev/null 2>$dir/said </dev/null || { cat $dir/said; exit 1; }
    cat /proc/\$($sublet runtime state c1 | sed -n 's/.*\"pid\": \([0-9]*\),.*/\1/p')/attr/apparmor/current
    $sublet runtime exec c1 /bin/busybox cat /proc/self/attr/apparmor/current /etc/group
    $sublet runtime exec c1 /bin/busybox cat /etc/passwd 2>&1 || echo refused
    $sublet runtime exec --apparmor unconfined c1 /bin/busybox cat /proc/self/attr/apparmor/current
    $sublet runtime delete --force c1"
  if [ "$1" = root ]; then said=$(bash -c "$words"); else said=$(session "$1" bash -c "$words"); fi
  eq labels 'sublet-test (enforce) sublet-test (enforce) unconfined' "$(grep -E 'enforce|unconfined' <<<"$said" | xargs)"
  has 'a file' '^root:x:0:' "$said"
  has 'the file that the profile denies' 'Permission denied' "$said"
  has 'and its code' '^refused' "$said"
}

test_the_guest_has_apparmor() {
  eq enabled Y "$(cat /sys/module/apparmor/parameters/enabled)"
  load_profile
  has profiles '^sublet-test \(enforce\)' "$(cat /sys/kernel/security/apparmor/profiles)"
}

test_a_users_payload_has_its_profile() { confined dev; }
test_that_of_a_user_with_one_id_has_its_profile() { confined solo; }
test_that_of_root_has_its_profile() { confined root; }

test_a_profile_that_is_not_loaded_is_refused() {
  local dir user
  for user in dev solo root; do
    dir=$(bundle "$user" sublet-none)
    fails 1 runtime "$user" create -b "$dir" c1
    has "refusal of $user" 'setting the AppArmor profile sublet-none: .*ENOENT' "$said"
    eq "containers of $user" '' "$(runtime "$user" list --quiet)"
  done
}

test_labels_of_a_module_that_is_not_there_are_refused() {
  local dir
  dir=$(bundle dev '')
  sed -i 's/"apparmorProfile": ""/"selinuxLabel": "system_u:system_r:container_t:s0"/' "$dir/config.json"
  fails 1 runtime dev create -b "$dir" c1
  has refusal 'selinuxLabel: SELinux is not switched on' "$said"
}

run_tests
