//! Programs as people run them in containers: installing packages, git, a compiler, databases, copies with every attribute.
//!
//! Each work checks what it has done and says `done` only then, the same for all sides. The clock is the script's own
//! ([`timed`]). Rivals: podman with the kernel's overlayfs and with fuse-overlayfs; and all of them once more with one id.

use super::files::{dropped, dropper, timed, told};
use super::rivals::{Ids, Rival, engines};
use super::{Ground, Side};
use crate::debian::{self, Root};
use crate::shell::Fallible;

/// Debian with what `apt-get` and `dpkg` are to install, so that no network is measured.
const PACKAGES: Root = Root {
    name: "packages",
    options: &[
        "--skip=cleanup/apt",
        r#"--customize-hook=chroot "$1" apt-get install -qq -y --download-only --no-install-recommends build-essential"#,
        r#"--customize-hook=mkdir -p "$1/packages/partial" && chroot "$1" apt-get install -qq -y --download-only \
           --no-install-recommends -o Dir::Cache::archives=/packages libmoose-perl libdatetime-perl libmojolicious-perl \
           libcatalyst-perl libdbix-class-perl"#,
    ],
};

/// Debian with programs, a repository of 20,000 files in 20 commits, and a crate that needs others.
const WORKSHOP: Root = Root {
    name: "workshop",
    options: &[
        "--include=git,rsync,sqlite3,postgresql,fio,cargo,librust-regex-dev,librust-serde-json-dev,ca-certificates",
        r#"--customize-hook=chroot "$1" sh -ec '
           git init -q /srv/repository; cd /srv/repository; git config user.name bench; git config user.email bench@localhost
           for commit in $(seq 20); do mkdir -p part-$commit; cd part-$commit
             seq 20000 | split -a 3 -l 20 - file-; cd ..; git add -A; git commit -q -m $commit; done
           mkdir -p /srv/crate/src /root/.cargo; cd /srv/crate
           printf "[package]\nname = \"bench\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\nregex = \"1\"\nserde_json = \"1\"\n" >Cargo.toml
           printf "fn main() { println!(\"{}\", regex::Regex::new(\"^d.ne\").unwrap().is_match(\"done\")); serde_json::json!(1); }\n" >src/main.rs
           printf "[source.crates-io]\nreplace-with = \"here\"\n[source.here]\ndirectory = \"/usr/share/cargo/registry\"\n" >/root/.cargo/config.toml'"#,
    ],
};

/// A program at work.
struct Work {
    name: &'static str,
    image: &'static str,
    /// What comes before the clock, and what it measures; `/w` is an empty directory.
    before: &'static str,
    script: &'static str,
    is_cold: bool,
}

const POSTGRES: &str = r#"chown postgres /w; bin=$(echo /usr/lib/postgresql/*/bin)
by() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }"#;

const WORKS: &[Work] = &[
    Work {
        name: "apt-get install build-essential",
        image: "packages",
        before: ":",
        script: "apt-get install -qq -y --no-download --no-install-recommends build-essential >/dev/null 2>&1; \
                 echo 'int main(void) { return 0; }' >/w/a.c; gcc -o /w/a /w/a.c; /w/a",
        is_cold: false,
    },
    Work {
        name: "dpkg -i of some 200 packages",
        image: "packages",
        before: ":",
        script: "dpkg -i /packages/*.deb >/dev/null 2>&1; perl -MMoose -MDateTime -e 1",
        is_cold: false,
    },
    Work {
        name: "git clone and fsck of 20,000 files",
        image: "workshop",
        before: ":",
        script: "git clone -q --no-local /srv/repository /w/clone; git -C /w/clone fsck --full 2>/dev/null; \
                 [ $(git -C /w/clone ls-files | wc -l) = 20000 ]",
        is_cold: false,
    },
    Work {
        name: "git status of 20,000 files, cold",
        image: "workshop",
        before: ":",
        script: "[ -z \"$(git -C /srv/repository status --porcelain)\" ]",
        is_cold: true,
    },
    Work {
        name: "git status of 20,000 files, again",
        image: "workshop",
        before: "git -C /srv/repository status --porcelain",
        script: "[ -z \"$(git -C /srv/repository status --porcelain)\" ]",
        is_cold: false,
    },
    Work {
        name: "cargo build",
        image: "workshop",
        before: "export HOME=/root; cp -r /srv/crate /w/crate; cd /w/crate",
        script: "cargo build -q --offline --release 2>/dev/null; [ $(target/release/bench) = true ]",
        is_cold: false,
    },
    Work {
        name: "PostgreSQL: initdb",
        image: "workshop",
        before: POSTGRES,
        script: "by $bin/initdb -D /w/db >/dev/null; [ -s /w/db/PG_VERSION ]",
        is_cold: false,
    },
    Work {
        name: "PostgreSQL: pgbench, 2,000 transactions of 4 clients",
        image: "workshop",
        before: "by $bin/initdb -D /w/db >/dev/null; by $bin/pg_ctl -s -w -D /w/db -o '-k /w' -l /w/db/log start; \
                 by $bin/pgbench -q -i -s 5 -h /w postgres 2>/dev/null",
        script: "by $bin/pgbench -n -c 4 -t 500 -h /w postgres 2>/dev/null | grep -q 'processed: 2000/2000'; \
                 by $bin/pg_ctl -s -w -D /w/db stop",
        is_cold: false,
    },
    Work {
        name: "rsync -aHAX of /usr",
        image: "workshop",
        before: ":",
        script: "rsync -aHAX /usr /w/; [ $(find /usr | wc -l) = $(find /w/usr | wc -l) ]",
        is_cold: false,
    },
    Work {
        name: "sqlite, WAL: 500 transactions, 200,000 rows",
        image: "workshop",
        before: "{ echo 'PRAGMA journal_mode=WAL; CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT);'; \
                 i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo \"INSERT INTO t (b) VALUES ('row $i');\"; done; \
                 echo \"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200000) \
                 INSERT INTO t (b) SELECT hex(i) FROM n; PRAGMA integrity_check; SELECT count(*) FROM t;\"; } >/w/sql",
        script: "[ \"$(sqlite3 /w/db </w/sql | tr '\\n' ' ')\" = 'wal ok 200500 ' ]",
        is_cold: false,
    },
    Work {
        name: "fio: 4 KiB reads at random",
        image: "workshop",
        before: "dd if=/dev/urandom of=/w/a bs=1M count=256 2>/dev/null",
        script: "fio --name=a --filename=/w/a --rw=randread --bs=4k --size=256m --ioengine=psync >/dev/null",
        is_cold: false,
    },
    Work {
        name: "fio: 4 KiB writes at random, one fsync",
        image: "workshop",
        before: "dd if=/dev/urandom of=/w/a bs=1M count=256 2>/dev/null",
        script: "fio --name=a --filename=/w/a --rw=randwrite --bs=4k --size=256m --ioengine=psync --end_fsync=1 >/dev/null",
        is_cold: false,
    },
];

pub fn sides(ground: &Ground) -> Fallible<Vec<Side>> {
    let mut sides = Vec::new();
    for root in [&PACKAGES, &WORKSHOP] {
        let image = debian::equipped(root)?.ok_or("only root can make these images: cargo xtask rig bench programs")?;
        fixture::push::push(&ground.registry, root.name, "latest", &image)?;
        let [mut engines, with_one] =
            [engines(ground, root.name, false, Ids::Many)?, engines(ground, root.name, false, Ids::One)?];
        engines.extend(with_one);
        let works = WORKS.iter().filter(|work| work.image == root.name && (!work.is_cold || dropper().is_some()));
        for work in works {
            sides.extend(engines.iter().map(|engine| side(work, engine)));
        }
    }
    Ok(sides)
}

fn side(work: &Work, engine: &Rival) -> Side {
    let run = engine.run(&timed(work.before, work.script));
    let side = Side::timed(work.name, &engine.name, run).valued("ms", |said| Some(told(said)? / 1000.0));
    if work.is_cold { side.after_doing(dropped) } else { side }
}

/// Makes the images, which only root can.
pub fn make_images() -> Fallible<()> {
    for root in [&PACKAGES, &WORKSHOP] {
        debian::equipped(root)?;
    }
    Ok(())
}
