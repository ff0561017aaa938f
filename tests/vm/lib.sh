# What every payload of the guest uses: sessions of the guest's users, checks, libtest's lines. Sourced by run.sh as root.
#
# A test is a function whose name begins with `test_`; `run_tests` runs all of them in the order of the file, each in a
# subshell that ends at the first failing command.

sublet=/payload/sublet

# session USER WORD...: a login session of its own for one command, as sshd would open it; ends when the command does.
# The variable `unit` holds further arguments of systemd-run, `limit_s` the seconds that a session may last.
session() {
  local user=$1 uid
  shift
  uid=$(id -u "$user")
  timeout "$((limit_s + 10))" systemd-run --quiet --pipe --wait --collect --expand-environment=no --uid="$user" --working-directory="/home/$user" \
    -p PAMName=login -p RuntimeMaxSec="$limit_s" -E XDG_RUNTIME_DIR="/run/user/$uid" -E DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" \
    -E HOME="/home/$user" -E USER="$user" -E LOGNAME="$user" "${unit[@]}" "$@" </dev/null
}
unit=()
limit_s=60

# on USER WORD...: sublet with these arguments, in a session of the user; root's data lie where the ids of its containers
# may pass.
on() {
  local user=$1
  shift
  if [ "$user" = root ]; then
    timeout "$((limit_s + 10))" "$sublet" --root /var/lib/sublet "$@" </dev/null
  else
    session "$user" "$sublet" "$@"
  fi
}

# The cgroup of a container by its id.
cgroup_of() { find /sys/fs/cgroup -type d -name "c-$1"; }

# eq WHAT WANTED GOT
eq() { [ "$2" = "$3" ] || { printf '%s: wanted <%s>, got <%s>\n' "$1" "$2" "$3"; return 1; }; }

# has WHAT PATTERN TEXT: a line of the text matches the extended regular expression.
has() { grep -Eq -- "$2" <<<"$3" || { printf '%s: no <%s> in <%s>\n' "$1" "$2" "$3"; return 1; }; }

# fails CODE WORD...: the command must end with this code; what it printed is in $said.
fails() {
  local wanted=$1 code=0
  shift
  said=$("$@" 2>&1) || code=$?
  eq "exit code of $*: $said" "$wanted" "$code"
}

# within SECONDS WORD...: repeats the command until it succeeds.
within() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || { printf 'not in time: %s\n' "$*"; return 1; }
    sleep 0.2
  done
}

run_tests() {
  local names name log passed=0 failed=0 code began
  log=$(mktemp)
  mapfile -t names < <(sed -n 's/^\(test_[a-z0-9_]*\)() .*/\1/p' /payload/run.sh)
  echo "running ${#names[@]} tests"
  for name in "${names[@]}"; do
    began=$SECONDS
    # Not in a condition: there, `set -e` would have no effect.
    (set -eu; "$name") >"$log" 2>&1
    code=$?
    if [ "$code" = 0 ]; then
      passed=$((passed + 1))
      echo "test ${name#test_} ... ok"
    else
      failed=$((failed + 1))
      echo "test ${name#test_} ... FAILED"
      sed 's/^/    /' "$log"
      # What it left must not fail the next one.
      for user in dev solo root; do
        for id in $(on "$user" ps -aq); do on "$user" rm -f "$id" >/dev/null; done
      done
    fi
    echo "    ($((SECONDS - began)) s)"
  done
  [ "$failed" = 0 ] && word=ok || word=FAILED
  echo "test result: $word. $passed passed; $failed failed; 0 ignored"
  [ "$failed" = 0 ]
}
