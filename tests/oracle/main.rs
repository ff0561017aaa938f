//! The same scripts on the kernel (or under podman) and under sublet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod pjdfstest;
mod tree;

use support::oracle::{same_as_podman, same_as_the_kernel, same_life_as_podman};

#[test]
fn files_directories_and_links() {
    same_as_the_kernel(
        "mkdir -p a/b; echo x >a/b/f; ln a/b/f l; ln -s a/b/f s; cat s; stat -c '%h %a %s' l; mv a c; ls -1R; \
         readlink s; rm -r c; cat s 2>/dev/null || echo dangling",
    );
}

#[test]
fn renames_over_files_and_directories() {
    same_as_the_kernel(
        "echo 1 >a; echo 2 >b; mv a b; cat b; mkdir d e; touch e/f; mv d e/; ls e; mkdir x y; touch y/z; \
         mv -T x y 2>/dev/null || echo refused; rmdir y 2>/dev/null || echo full",
    );
}

#[test]
fn permissions_and_times() {
    same_as_the_kernel(
        "touch -d '2020-02-02 02:02:02' f; TZ=UTC stat -c '%Y %a' f; chmod 4755 f; stat -c %a f; echo x >>f; \
         stat -c %s f; chmod 0 f; stat -c %A f; umask 077; mkdir d; stat -c %a d",
    );
}

#[test]
fn holes_truncation_and_append() {
    same_as_the_kernel(
        "dd if=/dev/zero of=f bs=1 count=1 seek=1000000 2>/dev/null; stat -c %s f; truncate -s 10 f; wc -c <f; \
         echo end >>f; wc -c <f; md5sum <f; truncate -s 5000 f; md5sum <f",
    );
}

#[test]
fn an_open_file_lives_on_after_its_name() {
    same_as_the_kernel("echo kept >f; exec 3<f; rm f; cat <&3; exec 4>g; rm g; echo x >&4; ls | wc -l");
}

#[test]
fn special_files_and_long_names() {
    same_as_the_kernel(
        "mkfifo p; stat -c %F p; (echo through >p &); cat p; n=$(printf '%0255d' 0); touch $n && ls | wc -l; \
         touch ${n}0 2>/dev/null || echo 'too long'",
    );
}

#[test]
fn many_files_in_a_directory() {
    same_as_the_kernel(
        "i=0; while [ $i -lt 3000 ]; do : >f$i; i=$((i+1)); done; ls | wc -l; ls | md5sum; rm f*; ls | wc -l",
    );
}

#[test]
fn a_name_replaced_while_it_is_open_and_linked() {
    same_as_the_kernel(
        "echo old >a; ln a l; exec 3<a; echo new >b; mv -f b a; cat a l; cat <&3; stat -c '%h %s' a l; ln -f a l; \
         stat -c %h a; rm a; stat -c %h l; cat l; ln l l2; echo more >>l2; cat l",
    );
}

#[test]
fn a_directory_moves_with_what_is_in_it_and_not_into_itself() {
    same_as_the_kernel(
        "mkdir -p a/b/c; echo x >a/b/c/f; mv a d; cat d/b/c/f; mv d d/b 2>/dev/null || echo refused; cd d/b; mv ../../d \
         ../../e; pwd -P | sed 's,.*/oracle,,'; cat c/f; cd ../..; rmdir e 2>/dev/null || echo full; ls -R e",
    );
}

#[test]
fn ownership_and_set_id_bits() {
    same_as_the_kernel(
        "echo x >f; chmod 6755 f; stat -c %a f; chown 0:0 f; stat -c '%a %u %g' f; chmod 6745 f; chown 0 f; stat -c %a f; \
         chmod 4755 f; echo y >f; stat -c %a f; chmod 4755 f; \
         echo z >>f; stat -c %a f; chmod 2745 f; truncate -s 1 f; stat -c %a f; mkdir d; chmod 2775 d; mkdir d/in; touch d/file; stat -c '%a %g' d/in; stat -c %a d/file; ln -s f s; chown -h 0:0 s; \
         stat -c '%A %u' s; mkfifo q; chmod 6755 q; chown 0:0 q; stat -c %a q; mknod dev c 1 3 2>/dev/null || echo 'no devices'; mknod pipe p; stat -c '%F %a' pipe",
    );
}

#[test]
fn a_large_file_is_what_was_written() {
    same_as_the_kernel(
        "i=0; while [ $i -lt 200 ]; do echo \"line $i of a block that repeats\"; i=$((i+1)); done >block; \
         dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' 'x' >f; cat block >>f; dd if=block of=f bs=1 seek=33554433 \
         conv=notrunc 2>/dev/null; wc -c <f; md5sum <f; cp f g; cmp f g && echo same; truncate -s 40000000 g; md5sum <g",
    );
}

#[test]
fn names_come_and_go_while_a_directory_is_listed() {
    same_as_the_kernel(
        "mkdir d; cd d; i=0; while [ $i -lt 1500 ]; do : >f$i; i=$((i+1)); done; find . -type f -exec rm {} +; ls | wc -l; \
         mkdir -p x/y; i=0; while [ $i -lt 300 ]; do mkdir x/d$i; i=$((i+1)); done; stat -c %h x; rm -r x; ls -A | wc -l",
    );
}

#[test]
fn the_engine_passes_options_as_podman_does() {
    same_as_podman(&["-e", "A=b", "-w", "/var", "--hostname", "h"], "echo $A; pwd; hostname; id -u; cat /proc/1/comm");
}

#[test]
fn the_engine_shows_the_image_as_podman_does() {
    same_as_podman(
        &[],
        "find /etc /var /tmp /root | sort | grep -v -e hosts -e hostname -e resolv | xargs stat -c '%n %u %g %a'",
    );
}

#[test]
fn limits_and_masks_are_those_of_podman() {
    same_as_podman(
        &[],
        // runc, and so Docker, makes /dev/core where the kernel has /proc/kcore; crun makes it always.
        "grep -e NoNewPrivs -e Seccomp: /proc/self/status | cut -f2; wc -c </proc/kcore; \
         for name in $(ls /dev | grep -v console | sort); do [ $name = core ] && [ ! -e /proc/kcore ] || echo $name; done",
    );
}

#[test]
fn containers_are_created_started_and_renamed() {
    same_life_as_podman(
        "e create --name made $IMAGE sh -c 'echo x >>/kept; wc -l </kept; exit 3' >/dev/null; \
         e inspect --format '{{.State.Status}} {{.State.ExitCode}}' made; e start -a made; echo $?; e start made; e wait made; \
         e logs made; e inspect --format '{{.State.Status}} {{.State.ExitCode}}' made; e rename made other; \
         e ps -a --format '{{.Names}}'; e rm other; e run -d --name busy $IMAGE sleep 600 >/dev/null; e restart -t 0 busy; \
         e inspect --format '{{.State.Running}}' busy; e rm -f busy",
    );
}

#[test]
fn files_are_copied() {
    same_life_as_podman(
        "mkdir -p s/d; echo x >s/f; echo y >s/d/g; ln -sf f s/l; e create --name box $IMAGE sleep 600 >/dev/null; \
         e cp s box:/tmp; e cp s/. box:/tmp/made; e cp s/f box:/tmp/renamed; e cp box:/tmp/s/d out; cat out/g; e start box; \
         e cp s/d/. box:/tmp; e cp box:/tmp/renamed out; e cp box:/tmp/s - | tar -t | sed 's|/$||' | sort; \
         e exec box sh -c 'cd /tmp; find . | sort; cat renamed made/d/g; readlink s/l'; ls out; \
         e cp box:/not/there out 2>/dev/null || echo refused; e cp s box:/tmp/renamed 2>/dev/null || echo refused; \
         e rm -f box; rm -r s out",
    );
}
