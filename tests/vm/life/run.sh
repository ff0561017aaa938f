#!/usr/bin/env bash
# The life of a container whose user logs in for each command: nothing but files and the container itself lasts between
# two of them.
. /payload/lib.sh

page='mkdir /srv/www && echo it works >/srv/www/index.html && echo ready && exec busybox httpd -f -v -p 80 -h /srv/www'
get() { busybox wget -q -T 5 -O - "http://127.0.0.1:$1/"; }

# serve USER PORT: the main job, a published server, from start to removal.
serve() {
  local user=$1 port=$2 id began
  id=$(on "$user" run -d --name web -p "127.0.0.1:$port:80" host: sh -c "$page")
  has id '^[0-9a-f]{64}$' "$id"
  within 10 get "$port"
  eq page 'it works' "$(get "$port")"
  has ps "Up .*127.0.0.1:$port->80/tcp +web" "$(on "$user" ps)"
  eq exec 'it works' "$(on "$user" exec web cat /srv/www/index.html)"
  fails 7 on "$user" exec web sh -c 'exit 7'
  # `logs -f` begins before the last line is written and ends with the container.
  on "$user" logs -f web >"/tmp/$user.log" 2>&1 &
  within 10 grep -q ready "/tmp/$user.log"
  on "$user" exec web sh -c 'echo late >/proc/1/fd/1'
  # busybox does not handle SIGTERM, and process 1 is not killed by a signal that it does not handle.
  began=$SECONDS
  on "$user" stop web
  [ $((SECONDS - began)) -ge 10 ]
  wait $!
  has 'logs -f' '^late$' "$(cat "/tmp/$user.log")"
  eq state 'exited 137 false' \
    "$(on "$user" inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' web)"
  eq wait 137 "$(on "$user" wait web)"
  fails 1 get "$port"
  on "$user" rm web
  eq ps '' "$(on "$user" ps -aq)"
}
# All users at once, so that their times of grace pass together.
begin() { (set -eu; serve "$1" "$2") >"/tmp/$1.said" 2>&1; echo $? >"/tmp/$1.code"; }
begin dev 8080 & begin solo 8081 & begin root 8082 &
wait
served() { cat "/tmp/$1.said"; return "$(cat "/tmp/$1.code")"; }
test_a_server_with_subordinate_ids() { served dev; }
test_a_server_with_one_id() { served solo; }
test_a_server_as_root() { served root; }

test_stop_within_the_grace() {
  local began
  on dev run -d --name init --init --network none host: sleep 600
  began=$SECONDS
  on dev stop init
  [ $((SECONDS - began)) -lt 9 ]
  eq 'killed by SIGTERM' 143 "$(on dev inspect --format '{{.State.ExitCode}}' init)"
  on dev rm init
  on dev run -d --name trap --network none host: sh -c 'trap "exit 5" TERM; echo set; while :; do sleep 0.1; done'
  within 10 trap_is_set
  on dev stop trap
  eq 'its own code' 5 "$(on dev inspect --format '{{.State.ExitCode}}' trap)"
  on dev rm trap
}
trap_is_set() { on dev logs trap | grep -q set; }

test_doctor_finds_every_best_rung() {
  local said
  said=$(on dev doctor)
  echo "$said"
  has ids '^ids +subuid$' "$said"
  has rootfs '^rootfs +overlay$' "$said"
  has proc '^/proc, /sys +new mount$' "$said"
  has network '^network +builtin$' "$said"
  has cgroup '^cgroup +scope$' "$said"
  has console '^console +devpts with gid 5$' "$said"
  has runtime '^runtime directory +XDG_RUNTIME_DIR$' "$said"
  ! grep -E '^ +(not|fix)' <<<"$said"
}

test_doctor_names_what_is_missing() {
  local said
  said=$(on solo doctor)
  has ids '^ids +one-id$' "$said"
  has reason 'not subuid: no line for solo in /etc/subuid' "$said"
  has fix 'fix: .*usermod --add-subuids' "$said"
}

# The user's systemd ends with all that is in it and begins again, as at a shutdown and a boot.
test_policies_bring_containers_back_with_the_users_systemd() {
  local name
  for name in always:always running:unless-stopped stopped:unless-stopped plain:no; do
    on dev run -d --name "${name%:*}" --restart "${name#*:}" --network none host: sleep 1000
  done
  on dev stop -t 0 stopped
  has enable '^/home/dev/.config/systemd/user/sublet-restart.service$' "$(on dev system enable 2>&1)"
  systemctl stop user@1000.service
  within 30 all_have_ended
  systemctl start user@1000.service
  within 60 state_is always running
  within 60 state_is running running
  state_is stopped exited
  state_is plain exited
  has unit '^ActiveState=active$' "$(session dev systemctl --user show sublet-restart.service)"
  on dev exec always true
  on dev system disable
  on dev rm -f always running stopped plain
}
all_have_ended() { ! pgrep -u dev sublet; }
state_is() { eq "state of $1" "$2" "$(on dev inspect --format '{{.State.Status}}' "$1")"; }

test_the_journal_has_the_lines() {
  local id said
  id=$(on dev run -d --name noted --log-driver journald --log-opt 'tag=t-{{.Name}}' --network none host: sh -c 'echo out; echo err >&2')
  on dev wait noted
  eq logs "$(printf 'err\nout')" "$(on dev logs noted 2>&1 | sort)"
  said=$(journalctl -o json-seq --output-fields=MESSAGE,PRIORITY,CONTAINER_NAME,SYSLOG_IDENTIFIER "CONTAINER_ID_FULL=$id")
  has out '"MESSAGE":"out"' "$said"
  has err '"MESSAGE":"err"' "$said"
  has priority '"PRIORITY":"3"' "$said"
  has name '"CONTAINER_NAME":"noted"' "$said"
  has tag '"SYSLOG_IDENTIFIER":"t-noted"' "$said"
  on dev rm noted
}

run_tests
